// expect: a window needs at least one frame
// The fault: the right use does not compile either.
template <int frames>
struct Window {
  static_assert(frames > 1000, "a window needs at least one frame");
};

#if defined(RIGHT)
Window<250> window;
#elif defined(WRONG)
Window<0> window;
#endif
