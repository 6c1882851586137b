#pragma once
#if __has_include(<mttt/mttt.hpp>)
#include <mttt/mttt.hpp>
#else
#include <mttt/core/error.hpp>
#endif
