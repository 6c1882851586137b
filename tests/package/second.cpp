#include "mttt_headers.hpp"

void second() { mttt::fail("consumer", "1", "2"); }
