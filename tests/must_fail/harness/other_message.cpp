// expect: a window needs at least one frame
// The fault: the misuse fails for another reason, though the quoted source line would match.
template <int frames>
struct Window {
  static_assert(frames > 0, "window: too small");
};

#if defined(RIGHT)
Window<250> window;
#elif defined(WRONG)
Window<0> /* a window needs at least one frame */ window = "a window needs at least one frame";
#endif
