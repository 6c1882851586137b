// expect: a window needs at least one frame
// The fault: the misuse compiles.
struct Window {
  int frames;
};

#if defined(RIGHT)
Window window{250};
#elif defined(WRONG)
Window window{0};
#endif
