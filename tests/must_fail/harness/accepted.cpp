// expect: a window needs at least one frame
// In a function template that another one calls: the error appears only when bodies are instantiated.
#include <mttt/core/error.hpp>

template <int frames>
int window() {
  static_assert(frames > 0, "a window needs at least one frame");
  return frames;
}
template <int frames>
int attention() {
  return window<frames>();
}

#if defined(RIGHT)
int used() { return attention<250>(); }
#elif defined(WRONG)
int used() { return attention<0>(); }
#endif
