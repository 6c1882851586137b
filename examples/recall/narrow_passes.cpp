#include "../train/passes_define.hpp"
#include "models.hpp"

template struct Passes<recalls::config_narrow, recalls::Number>;
