// The mel scale: pitch as it is heard.
//
// Formula: mel(f) = 2595 log10(1 + f / 700).
// Shapes:  scalars.
// Units:   Hz, mel.
// Errors:  none.
// Not supported: the scale of Slaney's toolbox, which is linear below 1 kHz.
// Source:  O'Shaughnessy 1987.
#pragma once

#include <cmath>

namespace mttt {

inline double mel_of_hertz(double hertz) { return 2595 * std::log10(1 + hertz / 700); }
inline double hertz_of_mel(double mel) { return 700 * (std::pow(10, mel / 2595) - 1); }

}  // namespace mttt
