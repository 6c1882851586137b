// Nothing: CMake needs one source that takes the precompiled header for the header to be made.
