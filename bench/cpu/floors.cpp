#include "floors.hpp"

#include <algorithm>
#include <array>

#include <benchmark/benchmark.h>
#include <xsimd/xsimd.hpp>

namespace bench {
namespace {

using batch = xsimd::batch<float, xsimd::default_arch>;
constexpr std::size_t step = sizeof(batch);

void use(const batch& sum) {
  std::array<float, batch::size> out{};
  sum.store_unaligned(out.data());
  benchmark::DoNotOptimize(out);
}

/// The hint that prefetches into the L2; 3 is the L1.
constexpr int into_l2 = 2;

/// One stream, eight sums; prefetches lines `Ahead` bytes further on.
template <std::size_t Ahead, int Cache = 3>
void read_stream(const char* data, std::size_t bytes) {
  std::array<batch, 8> sums;
  sums.fill(batch(0.0F));
  for (std::size_t i = 0; i + 8 * step <= bytes; i += 8 * step) {
    for (std::size_t k = 0; k < 8; ++k) {
      if constexpr (Ahead > 0) __builtin_prefetch(data + i + k * step + Ahead, 0, Cache);
      sums[k] += batch::load_unaligned(reinterpret_cast<const float*>(data + i + k * step));
    }
  }
  for (std::size_t k = 1; k < 8; ++k) sums[0] += sums[k];
  use(sums[0]);
}

/// Some rows at a time.
template <std::size_t Rows>
void read_rows(const char* data, std::size_t bytes, std::size_t row_bytes) {
  std::array<batch, Rows> sums;
  sums.fill(batch(0.0F));
  for (std::size_t i = 0; i + Rows * row_bytes <= bytes; i += Rows * row_bytes) {
    for (std::size_t c = 0; c + step <= row_bytes; c += step) {
      for (std::size_t k = 0; k < Rows; ++k) {
        sums[k] += batch::load_unaligned(reinterpret_cast<const float*>(data + i + k * row_bytes + c));
      }
    }
  }
  for (std::size_t k = 1; k < Rows; ++k) sums[0] += sums[k];
  use(sums[0]);
}

template <std::size_t Ahead, int Cache = 3>
void update_stream(const char* data, std::size_t bytes, std::size_t width, float* gradient) {
  const std::size_t floats = bytes / width;
  const std::size_t lag = sizeof(float) / width == 0 ? 1 : sizeof(float) / width;
  batch a(0.0F);
  for (std::size_t i = 0; i + 2 * batch::size <= floats; i += batch::size) {
    if (i % (lag * batch::size) == 0) {
      if constexpr (Ahead > 0) __builtin_prefetch(data + i * width + Ahead, 0, Cache);
      a = batch::load_unaligned(reinterpret_cast<const float*>(data + i * width));
    }
    if constexpr (Ahead > 0)
      __builtin_prefetch(gradient + i + Ahead / sizeof(float), Cache == 3 ? 1 : 0, Cache);
    const batch sum = batch::load_unaligned(gradient + i) + a * batch(1e-30F);
    sum.store_unaligned(gradient + i);
  }
}

/// body(first, count) over `bytes` in pieces that are multiples of `unit`, spread over threads.
template <class Body>
void in_pieces(std::size_t bytes, std::size_t unit, int threads, Body&& body) {
  if (threads == 1) {
    body(std::size_t{0}, bytes);
    return;
  }
  const std::size_t piece = std::max<std::size_t>(bytes / 64 / unit, 1) * unit;
  const auto pieces = static_cast<std::ptrdiff_t>((bytes + piece - 1) / piece);
#pragma omp parallel for schedule(dynamic, 1) num_threads(threads)
  for (std::ptrdiff_t i = 0; i < pieces; ++i) {
    const std::size_t first = static_cast<std::size_t>(i) * piece;
    body(first, std::min(piece, bytes - first));
  }
}

}  // namespace

std::vector<contender> read_floors(const void* data, std::size_t bytes, std::size_t row_bytes, int threads) {
  const char* p = static_cast<const char*>(data);
  const std::size_t unit = 8 * row_bytes;
  const auto spread = [=](auto body) { return [=] { in_pieces(bytes, unit, threads, body); }; };
  return {
      {"floor: stream", spread([=](std::size_t i, std::size_t n) { read_stream<0>(p + i, n); })},
      {"floor: prefetched", spread([=](std::size_t i, std::size_t n) { read_stream<2048>(p + i, n); })},
      {"floor: prefetched to the L2",
       spread([=](std::size_t i, std::size_t n) { read_stream<4096, into_l2>(p + i, n); })},
      {"floor: four rows", spread([=](std::size_t i, std::size_t n) { read_rows<4>(p + i, n, row_bytes); })},
      {"floor: eight rows",
       spread([=](std::size_t i, std::size_t n) { read_rows<8>(p + i, n, row_bytes); })}};
}

std::vector<contender> update_floors(const void* data, std::size_t bytes, std::size_t width, float* gradient,
                                     int threads) {
  const char* p = static_cast<const char*>(data);
  const auto spread = [=](auto body) { return [=] { in_pieces(bytes, 4096, threads, body); }; };
  return {{"floor: update", spread([=](std::size_t i, std::size_t n) {
             update_stream<0>(p + i, n, width, gradient + i / width);
           })},
          {"floor: update, prefetched", spread([=](std::size_t i, std::size_t n) {
             update_stream<1024>(p + i, n, width, gradient + i / width);
           })},
          {"floor: update, prefetched to the L2", spread([=](std::size_t i, std::size_t n) {
             update_stream<4096, into_l2>(p + i, n, width, gradient + i / width);
           })}};
}

}  // namespace bench
