// Links both instruction sets. The baseline's code runs everywhere; the other only where the machine has it.
#include <array>
#include <cmath>
#include <cstddef>
#include <cstdio>
#include <string_view>

const char* step_baseline(const float* a, std::ptrdiff_t ffn_dim, std::ptrdiff_t hidden_dim, const float* row,
                          float* out);
const char* step_avx2(const float* a, std::ptrdiff_t ffn_dim, std::ptrdiff_t hidden_dim, const float* row,
                      float* out);

int main() {
  constexpr std::size_t size = 37;
  std::array<float, 3 * size> a{};
  std::array<float, size> row{};
  for (std::size_t i = 0; i < a.size(); ++i) a[i] = static_cast<float>(i % 7) - 3;
  for (std::size_t i = 0; i < size; ++i) row[i] = static_cast<float>(i % 5);
  std::array<float, size> base{};
  const std::string_view name = step_baseline(a.data(), 3, size, row.data(), base.data());
  bool good = name == "generic" || name == "sse4";
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
    std::array<float, size> fast{};
    good = good && std::string_view(step_avx2(a.data(), 3, size, row.data(), fast.data())) == "avx2_fma";
    for (std::size_t i = 0; i < size; ++i) good = good && std::abs(base[i] - fast[i]) < 1e-5F;
  }
  std::puts(good ? "good" : "WRONG");
  return good ? 0 : 1;
}
