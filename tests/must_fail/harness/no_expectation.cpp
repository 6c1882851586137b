// The fault: nothing says what the compiler should say.
#if defined(WRONG)
#error "a window needs at least one frame"
#endif
