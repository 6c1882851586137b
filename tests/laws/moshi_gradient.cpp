// The gradient of the whole training loss against central differences, in float64.
#include <functional>
#include <string>
#include <vector>

#include "moshi_small.hpp"
#include "mttt/train/moshi_loss.hpp"

namespace {
using namespace mttt;
using namespace mttt::testing;
using B = Cpu<double>;
constexpr MoshiConfig adapted = moshi_small.with_lora(3, 1.5);
}  // namespace

TEMPLATE_TEST_CASE("Gradient of Moshi's loss, without and with adapters", "", (Moshi<moshi_small, B>),
                   (Moshi<adapted, B>)) {
  using Model = TestType;
  B be;
  Rng rng(2);
  auto params = laws::random_params<Model>(be, {.perturbation = 0.3}, rng);
  Store<typename Model::Params, B> grad(be);
  const auto scope = be.scope();
  const auto codes = random_codes(be, 2, 7, rng);
  codes(0, 0, 2) = moshi_small.existing_text_padding_id;
  const LossConfig weights{.text_padding_weight = 0.3f, .first_codebook_weight_multiplier = 5};
  const auto loss = [&] { return moshi_loss<Model>(be, *params, codes, weights).total(); };

  const auto at_start = moshi_loss<Model>(be, *params, codes, weights, &*grad);
  CHECK(at_start.total() == Approx(loss()).epsilon(1e-12));  // the logits were overwritten in one of the two
  std::vector<double> streams;
  const auto first = moshi_loss<Model, B, typename Model::Params>(
      be, *params, codes, {.first_codebook_weight_multiplier = 1e12f}, nullptr, {}, {}, &streams);
  REQUIRE(streams.size() == 1 + Model::K);
  CHECK(streams[0] == Approx(first.text_loss).epsilon(1e-12));
  CHECK(streams[1] == Approx(first.audio_loss).epsilon(1e-9));  // beside it the others weigh nothing
  CHECK(*std::min_element(streams.begin() + 1, streams.end()) <= at_start.audio_loss);
  CHECK(*std::max_element(streams.begin() + 1, streams.end()) >= at_start.audio_loss);
  Index tensors = 0;
  constexpr Index checked = Model::config.lora.rank == 0 ? 10 : 4;
  for_each_tensor(
      [&](std::string_view name, auto& p, auto& g) {
        double scale = 1e-3, error = 0, largest = 0;
        for (Index i = 0; i < g.size(); ++i) largest = std::max(largest, std::abs(g.data()[i]));
        for (Index n = 0; n < std::min<Index>(p.size(), checked); ++n) {
          const Index i =
              p.size() <= checked ? n : static_cast<Index>(rng.below(static_cast<std::uint64_t>(p.size())));
          const double kept = p.data()[i], h = 1e-5;
          p.data()[i] = kept + h;
          const double above = loss();
          p.data()[i] = kept - h;
          const double below = loss();
          p.data()[i] = kept;
          const double numeric = (above - below) / (2 * h);
          scale = std::max({scale, std::abs(numeric), largest});
          const double difference = std::abs(numeric - g.data()[i]);
          error = difference <= error ? error : difference;  // takes NaN
        }
        INFO(name << ": relative error " << error / scale);
        CHECK(error <= 1e-6 * scale);
        CHECK(largest > 0);  // every tensor takes part
        ++tensors;
      },
      *params, *grad);
  CHECK(tensors == (Model::config.lora.rank == 0 ? 71 : 71 + 2 * 39));

  Store<typename Model::Params, B> twice(be, grad);
  moshi_loss<Model>(be, *params, codes, weights, &*twice);
  const auto once = grad.template flat<double>(), sum = twice.template flat<double>();
  double difference = 0;
  for (Index i = 0; i < once.size(); ++i)
    difference = std::max(difference, std::abs(sum(i) - 2 * once(i)) / (1 + std::abs(once(i))));
  CHECK(difference < 1e-12);
}

// A trainer gives no place to the gradients of what does not train.
TEST_CASE("Gradients without a place are left out, and the others have the bits that they had") {
  using Model = Moshi<adapted, B>;
  B be;
  Rng rng(3);
  auto params = laws::random_params<Model>(be, {.perturbation = 0.3}, rng);
  Store<Model::Params, B> whole(be);
  const auto scope = be.scope();
  const auto codes = random_codes(be, 1, 4, rng);
  moshi_loss<Model>(be, *params, codes, {}, &*whole);

  std::vector<std::string> names;
  for_each_tensor([&](std::string_view name, const auto&) { names.emplace_back(name); }, *whole);
  const auto check = [&](const std::function<bool(const std::string&)>& trains) {
    std::vector<bool> held;
    for (const auto& name : names) held.push_back(trains(name));
    Store<Model::Params, B> part(be, 1, held);
    CHECK(part.bytes() < whole.bytes());
    moshi_loss<Model>(be, *params, codes, {}, &*part);
    std::size_t i = 0;
    for_each_tensor(
        [&](std::string_view name, const auto& a, const auto& b) {
          INFO(name);
          CHECK(left_out(b) == !held[i]);
          if (held[i++]) CHECK(laws::detail::same_bits(a.data(), b.data(), a.size()));
        },
        *whole, *part);
  };
  check([](const std::string& name) { return is_lora_name(name); });
  check([](const std::string& name) { return name.find(".ttt.") != name.npos; });
  check([](const std::string& name) { return name.find("emb") != name.npos; });
  for (const auto& alone : names) check([&](const std::string& name) { return name == alone; });
}
