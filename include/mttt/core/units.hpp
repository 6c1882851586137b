// Units: the parts of a model that a pass goes through one after the other, each used as a whole: the embeddings, a
// layer, a head. A training on several processes gathers the parameters of a unit, and sums its gradients, as one.
//
// A model that has units numbers them in the order of its parameters: its Params say
//   static void visit_units(auto&& f, auto& p)     // f(aggregate), together all tensors in the order of visit
// and its passes tell the hooks that they are given, before and after they use a unit. A hook that is told of a unit
// may move what the last one lay in: only the unit told of last is there.
//
// Formula: none.
// Shapes:  none.
// Units:   none.
// Errors:  none.
// Not supported: two units in use at a time.
// Source:  none.
#pragma once

#include <functional>

#include "mttt/core/tensor.hpp"

namespace mttt {

enum class UnitMoment {
  read,   // its parameters are read from now on
  add,    // its gradient is added to from now on
  added,  // its gradient has all that this backward pass adds
};

/// What passes tell, if anybody wants to know.
struct UnitHooks {
  std::function<void(UnitMoment, Index unit)> call = {};
  Index first = 0;

  /// The hooks of a part of the model, whose unit 0 is this one's `unit`.
  UnitHooks from(Index unit) const { return {call, first + unit}; }

  void read(Index unit) const { tell(UnitMoment::read, unit); }
  void add(Index unit) const { tell(UnitMoment::add, unit); }
  void added(Index unit) const { tell(UnitMoment::added, unit); }
  /// Before a backward pass, which reads the parameters again.
  void read_and_add(Index unit) const { read(unit), add(unit); }

 private:
  void tell(UnitMoment moment, Index unit) const {
    if (call) call(moment, first + unit);
  }
};

}  // namespace mttt
