// expect: Sessions: the first extent of every tensor of a State must be its sessions
#include "mttt/backend/cpu/cpu.hpp"
#include "mttt/lm/sessions.hpp"

using namespace mttt;

#ifdef WRONG
using Rows = Tensor<float, 4>;  // one for all sessions
#else
using Rows = Tensor<float, dyn, 4>;
#endif

struct State {
  Rows seen;
  static void visit(auto&& f, auto&&... s) { f("seen", s.seen...); }
};

int main() {
  Cpu<float> be;
  detail::SessionCopier<State, Cpu<float>> copy(be);
  return 0;
}
