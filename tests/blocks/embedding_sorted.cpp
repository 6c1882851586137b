// The gradient of an embedding as a backend that sorts takes it, here on the CPU: rows of one code lie together.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>
#include <vector>

#include "catch.hpp"
#include "mttt/backend/cpu/cpu.hpp"
#include "mttt/core/store.hpp"
#include "mttt/nn/embedding.hpp"

namespace {
using namespace mttt;

/// Both ways with the same dy, of `rows` codes below `card`, some without a place in the table; of whole numbers,
/// whose sums are exact in any order.
template <Index dim, Index lanes>
void sorted_as_in_order(Index rows, Index card) {
  constexpr EmbeddingConfig config{.card = 9, .dim = dim};
  Cpu<bf16> be;
  Rng rng(static_cast<std::uint64_t>(rows));
  std::vector<std::int32_t> codes, numbers(static_cast<std::size_t>(rows)), keys;
  for (Index i = 0; i < rows; ++i)
    codes.push_back(static_cast<std::int32_t>(rng.below(static_cast<std::uint64_t>(card + 2))) - 1);
  const auto dy = be.make<bf16, dyn, dim>(rows);
  for (Index i = 0; i < dy.size(); ++i) dy.data()[i] = bf16(static_cast<float>(rng.below(65)) - 32);

  using Params = typename Embedding<config, Cpu<float>>::Params;
  Store<Params, Cpu<bf16>> expected(be), got(be);
  Embedding<config, Cpu<bf16>>::backward(be, CodeRows<std::int32_t>(codes.data(), 1, rows, {0, 1}), dy.data(),
                                         *expected);

  std::iota(numbers.begin(), numbers.end(), 0);
  const auto key = [&](std::int32_t i) {
    const std::int32_t code = codes[static_cast<std::size_t>(i)];
    return code >= 0 && code < config.card ? code : static_cast<std::int32_t>(config.card);
  };
  std::stable_sort(numbers.begin(), numbers.end(), [&](auto a, auto b) { return key(a) < key(b); });
  for (const auto i : numbers) keys.push_back(key(i));
  detail::SumPieces<bf16, float, float, lanes> sums{
      keys.data(), numbers.data(), dy.data(), got->weight.data(), nullptr, rows, config.card, dim};
  const auto parts = be.make<float, dyn, 2, dim>(sums.pieces());
  be.fill(parts.data(), parts.size(), NAN);
  sums.parts = parts.data();
  be.rows(sums.pieces() * sums.blocks(), sums);
  be.rows(sums.pieces() * sums.blocks(), detail::JoinRuns<bf16, float, float, lanes>{sums});
  CHECK(std::memcmp(got.data(), expected.data(), static_cast<std::size_t>(got.bytes())) == 0);
}
}  // namespace

TEST_CASE("Sums of sorted rows in pieces are sums in order") {
  for (const Index rows : {1, 2, 5, 63, 64, 65, 128, 1503}) {
    for (const Index card : {-1, 0, 1, 3, 9, 12}) {  // below 1: one code for all
      INFO(rows << " rows, codes below " << card);
      sorted_as_in_order<40, 8>(rows, card);
      sorted_as_in_order<45, 1>(rows, card);
      sorted_as_in_order<1096, 8>(rows, card);  // three blocks of columns, the last one shorter
    }
  }
}
