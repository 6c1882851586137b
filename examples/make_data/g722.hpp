// G.722 at 64 kbit/s: two bands of 4 kHz, 6 bits for the lower one and 2 for the upper one; 16 kHz.
//
// Formula: in each band the signal is predicted by two poles and six zeros, which both sides learn from what was sent,
//          and the error is scaled by a step that both sides learn too; a filter of 24 taps joins the bands.
// Source:  ITU-T Recommendation G.722 (1988), section 4 (blocks by their names there).
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <string_view>
#include <vector>

class G722Decoder {
 public:
  std::vector<float> decode(std::string_view bytes) {
    std::vector<float> out;
    out.reserve(2 * bytes.size());
    for (const char byte : bytes) {
      const int code = static_cast<unsigned char>(byte), low = code & 63, high = code >> 6;
      const int r_low = std::clamp(lower_.s + ((lower_.step * error_6[static_cast<std::size_t>(low)]) >> 15),
                                   -16384, 16383);
      const auto coarse = static_cast<std::size_t>(low >> 2);
      const int d_low = (lower_.step * error_4[coarse]) >> 15;
      lower_.scale(growth_4[growth_of_4[coarse]], 18432, 8);
      lower_.adapt(d_low);
      const auto h = static_cast<std::size_t>(high);
      const int d_high = (upper_.step * error_2[h]) >> 15;
      const int r_high = std::clamp(d_high + upper_.s, -16384, 16383);
      upper_.scale(growth_2[growth_of_2[h]], 22528, 10);
      upper_.adapt(d_high);
      join(r_low + r_high, r_low - r_high, out);
    }
    return out;
  }

 private:
  static int saturate(int x) { return std::clamp(x, -32768, 32767); }

  struct Band {
    int step, log_step = 0, s = 0, s_zeros = 0;
    std::array<int, 3> a{}, p{}, r{};
    std::array<int, 7> b{}, d{};

    void scale(int growth, int most, int shift) {
      log_step = std::clamp(((log_step * 127) >> 7) + growth, 0, most);
      const int mantissa = mantissas[static_cast<std::size_t>((log_step >> 6) & 31)],
                down = shift - (log_step >> 11);
      step = (down < 0 ? mantissa << -down : mantissa >> down) << 2;
    }

    void adapt(int error) {
      d[0] = error, r[0] = saturate(s + error), p[0] = saturate(s_zeros + error);
      const bool same_1 = (p[0] < 0) == (p[1] < 0), same_2 = (p[0] < 0) == (p[2] < 0);
      const int turn = std::min(32767, same_1 ? -saturate(a[1] * 4) : saturate(a[1] * 4));  // UPPOL2
      const int a2 = std::clamp((same_2 ? 128 : -128) + (turn >> 7) + ((a[2] * 32512) >> 15), -12288, 12288);
      const int most = saturate(15360 - a2);  // UPPOL1
      const int a1 = std::clamp(saturate((same_1 ? 192 : -192) + ((a[1] * 32640) >> 15)), -most, most);
      const int push = error == 0 ? 0 : 128;  // UPZERO
      for (std::size_t i = 6; i > 0; --i)
        b[i] = saturate(((d[i] < 0) == (error < 0) ? push : -push) + ((b[i] * 32640) >> 15));
      for (std::size_t i = 6; i > 0; --i) d[i] = d[i - 1];  // DELAYA
      r = {r[0], r[0], r[1]}, p = {p[0], p[0], p[1]}, a = {0, a1, a2};
      const int poles =
          saturate(((a[1] * saturate(2 * r[1])) >> 15) + ((a[2] * saturate(2 * r[2])) >> 15));  // FILTEP
      s_zeros = 0;                                                                              // FILTEZ
      for (std::size_t i = 6; i > 0; --i) s_zeros += (b[i] * saturate(2 * d[i])) >> 15;
      s_zeros = saturate(s_zeros);
      s = saturate(poles + s_zeros);
    }
  };

  void join(int sum, int difference, std::vector<float>& out) {
    std::copy(past_.begin() + 2, past_.end(), past_.begin());
    past_[22] = sum, past_[23] = difference;
    int even = 0, odd = 0;
    for (std::size_t i = 0; i < 12; ++i)
      even += past_[2 * i] * taps[i], odd += past_[2 * i + 1] * taps[11 - i];
    for (const int x : {odd, even}) out.push_back(static_cast<float>(saturate(x >> 11)) / 32768);
  }

  static constexpr int growth_4[] = {-60, -30, 58, 172, 334, 538, 1198, 3042}, growth_2[] = {0, -214, 798};
  static constexpr std::size_t growth_of_4[] = {0, 7, 6, 5, 4, 3, 2, 1, 7, 6, 5, 4, 3, 2, 1, 0},
                               growth_of_2[] = {2, 1, 2, 1};
  static constexpr int mantissas[] = {2048, 2093, 2139, 2186, 2233, 2282, 2332, 2383, 2435, 2489, 2543,
                                      2599, 2656, 2714, 2774, 2834, 2896, 2960, 3025, 3091, 3158, 3228,
                                      3298, 3371, 3444, 3520, 3597, 3676, 3756, 3838, 3922, 4008};
  static constexpr int error_2[] = {-7408, -1616, 7408, 1616};
  static constexpr int error_4[] = {0,     -20456, -12896, -8968, -6288, -4240, -2584, -1200,
                                    20456, 12896,  8968,   6288,  4240,  2584,  1200,  0};
  static constexpr int error_6[] = {
      -136,  -136,  -136,  -136,  -24808, -21904, -19008, -16704, -14984, -13512, -12280, -11192, -10232,
      -9360, -8576, -7856, -7192, -6576,  -6000,  -5456,  -4944,  -4464,  -4008,  -3576,  -3168,  -2776,
      -2400, -2032, -1688, -1360, -1040,  -728,   24808,  21904,  19008,  16704,  14984,  13512,  12280,
      11192, 10232, 9360,  8576,  7856,   7192,   6576,   6000,   5456,   4944,   4464,   4008,   3576,
      3168,  2776,  2400,  2032,  1688,   1360,   1040,   728,    432,    136,    -432,   -136};
  static constexpr int taps[] = {3, -11, 12, 32, -210, 951, 3876, -805, 362, -156, 53, -11};

  Band lower_{32}, upper_{8};
  std::array<int, 24> past_{};
};
