// Prints the bits that each instruction set gives.
#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <vector>

using step = float(const float* a, std::ptrdiff_t ffn_dim, std::ptrdiff_t hidden_dim, const float* row,
                   float* out);
step step_baseline;
step step_v3;
step step_v4;

namespace {

std::uint32_t bits_of(step& run) {
  constexpr std::ptrdiff_t f = 57;
  constexpr std::ptrdiff_t d = 1037;
  std::vector<float> a(static_cast<std::size_t>(f * d));
  std::vector<float> row(static_cast<std::size_t>(d));
  std::vector<float> out(row.size());
  for (std::size_t i = 0; i < a.size(); ++i)
    a[i] = static_cast<float>(i * 2654435761U % 1000003U) * 1e-6F - 0.5F;
  for (std::size_t i = 0; i < row.size(); ++i) row[i] = static_cast<float>(i * 40503U % 1009U) * 1e-3F - 0.5F;
  auto hash = std::bit_cast<std::uint32_t>(run(a.data(), f, d, row.data(), out.data()));
  for (const float x : out) hash = hash * 16777619U ^ std::bit_cast<std::uint32_t>(x);
  return hash;
}

}  // namespace

int main() {
  std::printf("baseline %08x\n", bits_of(step_baseline));
#if defined(__x86_64__)
  if (__builtin_cpu_supports("x86-64-v3")) std::printf("v3 %08x\n", bits_of(step_v3));
  if (__builtin_cpu_supports("x86-64-v4")) std::printf("v4 %08x\n", bits_of(step_v4));
#endif
  return 0;
}
