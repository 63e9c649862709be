// A GPU that applies experts: what the tool asks of one. Without nvcc there is none, and asking for it says
// so.
#pragma once

#include <mpi_router/core/lanczos_step.hpp>
#include <mpi_router/core/storage_traits.hpp>
#include <mpi_router/core/views.hpp>

#include <cstddef>
#include <memory>
#include <semaphore>
#include <span>
#include <string>

namespace verify {

using mpi_router::index_t;

/// A matrix in host memory: the bytes from its first element to its last, and how it lies in them.
struct stored_bytes {
  const std::byte* first = nullptr;
  std::size_t size = 0;
  std::ptrdiff_t start = 0;  ///< of element (0, 0), in bytes from `first`
  mpi_router::storage_format format = mpi_router::storage_format::f32;
  index_t rows = 0;
  index_t cols = 0;
  index_t row_stride = 0;
  index_t col_stride = 0;
};

template <class T>
[[nodiscard]] stored_bytes bytes_of(const mpi_router::matrix_view<const T>& a) {
  const auto range = mpi_router::core::addresses(a);
  const auto* const first = reinterpret_cast<const std::byte*>(range.first);
  return {first,
          range.last - range.first,
          reinterpret_cast<const std::byte*>(a.data()) - first,
          mpi_router::storage_traits<T>::format,
          a.rows(),
          a.cols(),
          a.row_stride(),
          a.col_stride()};
}

/// The device that the experts of a process go to, with a stream and page-locked memory for each of those
/// under way. Any number of threads.
class gpu {
 public:
  /// Takes device number `rank`, modulo how many there are. Throws std::runtime_error where there is none.
  explicit gpu(int rank);
  gpu(const gpu&) = delete;
  gpu& operator=(const gpu&) = delete;
  ~gpu();

  /// "NVIDIA H200".
  [[nodiscard]] const std::string& name() const noexcept;

  /// Makes room for as many experts of up to these sizes as the device has multiprocessors, a quarter more
  /// that are being read, and memory for. Returns how many. Throws std::runtime_error where not even one
  /// fits.
  int make_room(index_t ffn_dim, index_t hidden_dim);

  /// Held by what computes on the host, a core each: there are more threads than cores.
  [[nodiscard]] std::counting_semaphore<>& cores() noexcept { return cores_; }

  struct implementation;

 private:
  friend class gpu_expert;
  std::unique_ptr<implementation> implementation_;
  std::counting_semaphore<> cores_;
};

/// One matrix on the device, for one thread. What it takes it gives back.
class gpu_expert {
 public:
  /// Copies the matrix there.
  gpu_expert(gpu& device, const stored_bytes& a);
  gpu_expert(const gpu_expert&) = delete;
  gpu_expert& operator=(const gpu_expert&) = delete;
  ~gpu_expert();

  /// u = xM, returns xMxᵀ, in double.
  double apply(mpi_router::vector_view<const double> x, mpi_router::vector_view<double> u);

  /// Vectors of D elements on the device, to give back before the expert goes.
  [[nodiscard]] double* take_vectors(index_t count);
  void give_back(double* vectors) noexcept;
  void store(double* vectors, index_t k, mpi_router::vector_view<const double> x);
  /// out = Σ_k y_k times vector `from` + k.
  void combine(double* vectors, index_t from, mpi_router::vector_view<const double> y,
               mpi_router::vector_view<double> out);
  /// Steps of Lanczos from vector `newest` on, in units of `scale`; how many were taken.
  index_t lanczos(double* vectors, index_t newest, bool is_first, double scale, double before,
                  std::span<mpi_router::lanczos_step> found);

 private:
  struct implementation;
  std::unique_ptr<implementation> implementation_;
};

/// Keeps a core as long as it lives, where there is a device.
class core_of_host {
 public:
  explicit core_of_host(gpu* device) : device_(device) {
    if (device_ != nullptr) {
      device_->cores().acquire();
    }
  }
  core_of_host(const core_of_host&) = delete;
  core_of_host& operator=(const core_of_host&) = delete;
  ~core_of_host() {
    if (device_ != nullptr) {
      device_->cores().release();
    }
  }

 private:
  gpu* device_;
};

}  // namespace verify
