// Memory for the contenders: aligned to a page and touched before anything is timed.
#pragma once

#include "cases.hpp"

#include <mpi_router/core/scalar.hpp>

#include <cstdlib>
#include <cstring>
#include <memory>
#include <random>
#include <vector>

namespace bench {

struct free_memory {
  void operator()(void* p) const { std::free(p); }  // NOLINT(cppcoreguidelines-no-malloc)
};

template <class T>
class buffer {
 public:
  explicit buffer(index_t size)
      : size_(size), data_(static_cast<T*>(std::aligned_alloc(4096, (bytes() + 8191) / 4096 * 4096))) {}
  [[nodiscard]] T* data() const { return data_.get(); }
  [[nodiscard]] index_t size() const { return size_; }
  [[nodiscard]] std::size_t bytes() const { return static_cast<std::size_t>(size_) * sizeof(T); }

 private:
  index_t size_;
  std::unique_ptr<T, free_memory> data_;
};

/// Uniform values in (−1, 1); of a large buffer the same million again and again.
template <class T>
void fill_random(const buffer<T>& b, unsigned seed) {
  const index_t block = std::min<index_t>(b.size(), index_t{1} << 20);
  std::mt19937 engine(seed);
  for (index_t i = 0; i < block; ++i) {
    b.data()[i] = mpi_router::narrow<T>(static_cast<mpi_router::accumulator_t<T>>(
        static_cast<double>(static_cast<int>(engine() % 2001) - 1000) / 1024));
  }
  for (index_t i = block; i < b.size(); i += block) {
    std::memcpy(b.data() + i, b.data(), static_cast<std::size_t>(std::min(block, b.size() - i)) * sizeof(T));
  }
}

/// Everything that the contenders of one case share.
template <class T>
struct problem {
  using S = mpi_router::accumulator_t<T>;
  explicit problem(const bench_case& c)
      : what(c),
        weights(c.shape.num_experts * c.shape.ffn_dim * c.shape.hidden_dim),
        rows(c.shape.num_experts * c.shape.hidden_dim),
        duals(rows.size()),
        images(rows.size()),
        projections(c.shape.num_experts * c.shape.ffn_dim),
        dual_projections(projections.size()),
        gradient(c.work == work_kind::backward ? weights.size() : 0) {
    fill_random(weights, 1);
    fill_random(rows, 2);
    fill_random(duals, 3);
    fill_random(images, 4);
    fill_random(projections, 5);
    fill_random(dual_projections, 6);
    fill_random(gradient, 7);
  }
  bench_case what;
  buffer<T> weights;
  buffer<S> rows;
  buffer<S> duals;
  buffer<S> images;
  buffer<S> projections;
  buffer<S> dual_projections;
  buffer<S> gradient;
};

}  // namespace bench
