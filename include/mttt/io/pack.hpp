// pack_model: the file of a trained model or codec in the form that ships: large weights in 8 bits, the rest in 16.
//
// Formula: of each row w of a large weight scale = max |w| / 127, value = the whole number nearest to
//          w / scale; vectors of codebooks become their means (usage 1), all else rounds to float16.
// Shapes:  rows are those of the published tensors' first axis: outputs, of transposed convolutions inputs, of
//          embeddings codes. Large is a weight of two axes, or three in a convolution, rows of 16 numbers, 4096
//          in all, outside a codec's quantiser and the fast weights' start (ttt.W1, ...).
//          load_params reads both, into a model of any type.
// Units:   bytes: 1 a weight and 4 a row; 2 a number.
// Errors:  numbers that float16 does not hold.
// Not supported: training on from it as if the codebooks had been used as before.
// Source:  bitsandbytes `int8_vectorwise_quant`, for the rows.
#pragma once

#include "mttt/core/quantise.hpp"
#include "mttt/io/checkpoint.hpp"

namespace mttt {

namespace detail {

/// e = sum / usage of each code, in place; usages become 1 and codes of no use 0.
inline void average_codes(std::vector<float>& sums, std::vector<float>& usage) {
  const std::size_t dim = sums.size() / std::max<std::size_t>(1, usage.size());
  for (std::size_t c = 0; c < usage.size(); ++c) {
    for (std::size_t i = 0; i < dim; ++i) sums[c * dim + i] /= std::max(usage[c], 1e-5f);  // as derive does
    usage[c] = 1;
  }
}

inline bool packs_in_8_bits(const TensorEntry& entry, Index rows, Index columns) {
  const std::string_view name = entry.name;
  return entry.shape.size() >= 2 && rows * columns >= 4096 && columns >= 16 &&
         !name.starts_with("quantizer.") && name.find(".ttt.W") == name.npos;
}

}  // namespace detail

/// Returns the bytes of the new file.
inline std::uintmax_t pack_model(const std::filesystem::path& from, const std::filesystem::path& to) {
  const SafetensorsFile file(from);
  SafetensorsWriter writer;
  for (const auto& [key, value] : file.metadata()) writer.set_metadata(key, value);
  std::vector<std::vector<float>> kept;
  std::vector<std::vector<std::int8_t>> values;
  kept.reserve(2 * file.tensors().size()), values.reserve(file.tensors().size());
  for (const TensorEntry& entry : file.tensors()) {
    auto& numbers = kept.emplace_back(file.read<float>(entry));
    const auto rows = entry.shape.empty() ? 1 : static_cast<Index>(entry.shape[0]);
    const Index count = static_cast<Index>(numbers.size()), columns = rows > 0 ? count / rows : 0;
    const std::string& name = entry.name;
    if (detail::packs_in_8_bits(entry, rows, columns)) {
      auto& row = values.emplace_back(numbers.size());
      auto& scales = kept.emplace_back(static_cast<std::size_t>(rows));
      quantise_rows<Int8>(name, numbers.data(), rows, columns, row.data(), scales.data(), true);
      writer.add(name, entry.shape, std::span<const std::int8_t>(row));
      writer.add(name + ".scale", {entry.shape[0]}, std::span<const float>(scales));
      continue;
    }
    const std::string sums = "_codebook.embedding_sum", uses = "_codebook.cluster_usage";
    if (name.ends_with(sums) || name.ends_with(uses)) {
      const bool vectors = name.ends_with(sums);
      const std::string level = name.substr(0, name.size() - (vectors ? sums : uses).size());
      auto usage = file.read<float>(file.at(level + uses)), means = file.read<float>(file.at(level + sums));
      detail::average_codes(means, usage);
      numbers = vectors ? means : usage;
    }
    detail::check_rounded<float>(name, DType::F16, numbers);
    writer.add_rounded(name, DType::F16, entry.shape, numbers);
  }
  writer.write(to);
  return std::filesystem::file_size(to);
}

}  // namespace mttt
