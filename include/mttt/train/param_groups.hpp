// Parameter groups: learning rate, weight decay and freezing of each tensor, chosen by name.
//
// Formula: the group of a tensor is the default one, changed by the last rule that matches its name.
//          By default a tensor with at most one extent above 1 (norms, biases, gates, scales) does not decay.
// Shapes:  one group a tensor, in the order of for_each_tensor.
// Units:   `learning_rate` multiplies that of the schedule; `weight_decay` is AdamW's.
// Errors:  a rule that matches no tensor (most likely a misspelt name).
// Not supported: groups that cut through a tensor.
// Source:  torch.optim parameter groups.
#pragma once

#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "mttt/core/visit.hpp"

namespace mttt {

struct ParamGroup {
  double learning_rate = 1;
  double weight_decay = 0;
  bool frozen = false;  // neither changed nor counted in the gradient's norm
  bool operator==(const ParamGroup&) const = default;
};

struct GroupRule {
  std::string says;  // for messages
  std::function<bool(std::string_view name)> matches;
  double learning_rate = 1;
  std::optional<double> weight_decay = {};  // nothing: the default
  bool frozen = false;
};

/// For rules: whether the name has `part` in it.
inline std::function<bool(std::string_view)> name_contains(std::string part) {
  return [part = std::move(part)](std::string_view name) { return name.find(part) != name.npos; };
}

/// For models with TTT layers. base_lr is a constant of their formula, a parameter only so that it is saved
/// with the weights: what learns of the inner learning rate is the sigmoid that it multiplies.
inline GroupRule frozen_base_lr() {
  return {.says = "base_lr", .matches = name_contains("base_lr"), .frozen = true};
}

template <class P>
std::vector<ParamGroup> make_groups(const P& params, double weight_decay,
                                    const std::vector<GroupRule>& rules = {}) {
  std::vector<ParamGroup> groups;
  std::vector<bool> used(rules.size(), false);
  for_each_tensor(
      [&](std::string_view name, const auto& tensor) {
        int wide = 0;
        for (const Index extent : tensor.extents()) wide += extent > 1;
        ParamGroup group{1, wide > 1 ? weight_decay : 0, false};
        const double by_shape = group.weight_decay;
        for (std::size_t i = 0; i < rules.size(); ++i) {
          if (!rules[i].matches(name)) continue;
          used[i] = true;
          group = {rules[i].learning_rate, rules[i].weight_decay.value_or(by_shape), rules[i].frozen};
        }
        groups.push_back(group);
      },
      params);
  for (std::size_t i = 0; i < rules.size(); ++i) {
    if (!used[i])
      fail("parameter group '" + rules[i].says + "'", "no tensor that it matches", "at least one",
           "compare the rule with the names of the model");
  }
  return groups;
}

}  // namespace mttt
