// gpu and gpu_expert over cuda/: memory, streams, and the copies.
#include "gpu.hpp"

#include "gpu_slots.cuh"

#include <sys/mman.h>
#include <unistd.h>
#include <algorithm>
#include <array>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <optional>
#include <stdexcept>
#include <thread>
#include <variant>
#include <vector>

namespace verify {

namespace {

using namespace mpi_router;

/// Tells the kernel that these pages will be read, all at once.
void announce(const stored_bytes& a) {
  const auto page = static_cast<std::uintptr_t>(::sysconf(_SC_PAGESIZE));
  const auto first = reinterpret_cast<std::uintptr_t>(a.first) / page * page;
  const auto last = reinterpret_cast<std::uintptr_t>(a.first) + a.size;
  static_cast<void>(::posix_madvise(reinterpret_cast<void*>(first), last - first, POSIX_MADV_WILLNEED));
}

}  // namespace

gpu::gpu(int rank)
    : implementation_(std::make_unique<implementation>()),
      cores_(std::max(1, static_cast<int>(std::thread::hardware_concurrency()))) {
  auto& own = *implementation_;
  // Streams that share a queue to the device may wait for each other. The driver reads this once, and by
  // itself takes 8 queues.
  ::setenv("CUDA_DEVICE_MAX_CONNECTIONS", "32", 0);
  int count = 0;
  const auto code = cudaGetDeviceCount(&count);
  if (code != cudaSuccess || count == 0) {
    throw std::runtime_error(std::string("--gpu: there is no CUDA device: ") +
                             (code != cudaSuccess ? cudaGetErrorString(code) : "the driver shows none"));
  }
  own.device = rank % count;
  try {
    // More threads wait than there are cores: they sleep.
    must("cudaInitDevice",
         cudaInitDevice(own.device, cudaDeviceScheduleBlockingSync, cudaInitDeviceFlagsAreValid));
    must("cudaSetDevice", cudaSetDevice(own.device));
    cudaDeviceProp properties = {};
    must("cudaGetDeviceProperties", cudaGetDeviceProperties(&properties, own.device));
    own.name = properties.name;
    if (properties.major < 8) {
      throw std::runtime_error("--gpu: " + own.name + " is older than compute capability 8.0");
    }
    own.context = cuda::make_context();
    // What is given back stays with the process: the next expert takes it.
    cudaMemPool_t pool = nullptr;
    must("cudaDeviceGetDefaultMemPool", cudaDeviceGetDefaultMemPool(&pool, own.device));
    auto all = ~std::uint64_t{0};
    must("cudaMemPoolSetAttribute", cudaMemPoolSetAttribute(pool, cudaMemPoolAttrReleaseThreshold, &all));
  } catch (const cuda::cuda_error& e) {
    throw std::runtime_error(std::string("--gpu: ") + e.what());
  }
}
gpu::~gpu() = default;

const std::string& gpu::name() const noexcept { return implementation_->name; }

int gpu::make_room(index_t ffn_dim, index_t hidden_dim) {
  auto& own = *implementation_;
  std::size_t free = 0;
  std::size_t all = 0;
  must("cudaMemGetInfo", cudaMemGetInfo(&free, &all));
  const std::size_t each = static_cast<std::size_t>(ffn_dim * hidden_dim) * sizeof(double) +
                           most_spaces * bytes_of_vectors(most_vectors, hidden_dim) +
                           cuda::gram_operator<double>::workspace_bytes(ffn_dim, hidden_dim, most_vectors);
  // One for each multiprocessor, and a quarter more that are being read.
  const auto most = static_cast<std::size_t>(own.context.multiprocessors) / 4 * 5;
  const auto room = std::min(most, free / 5 * 4 / each);
  if (room == 0) {
    const auto megabytes = [](std::size_t x) { return std::to_string(x / 1'000'000) + " MB"; };
    throw std::runtime_error("--gpu: " + own.name + " has " + megabytes(free) +
                             " of memory left, and an expert of " + std::to_string(ffn_dim) + " x " +
                             std::to_string(hidden_dim) + " takes " + megabytes(each));
  }
  own.staging = staging_bytes(hidden_dim);
  void* pinned = nullptr;
  must("cudaHostAlloc", cudaHostAlloc(&pinned, room * (own.staging + chunk), cudaHostAllocDefault));
  own.pinned = static_cast<std::byte*>(pinned);
  for (std::size_t i = 0; i < room; ++i) {
    slot one;
    must("cudaStreamCreate", cudaStreamCreateWithFlags(&one.stream, cudaStreamNonBlocking));
    one.staging = own.pinned + i * (own.staging + chunk);
    own.free.push_back(one);
  }
  return static_cast<int>(room);
}

namespace {

/// M of whatever type the elements are of.
using device_operator = std::variant<cuda::gram_operator<float>, cuda::gram_operator<double>,
                                     cuda::gram_operator<bf16>, cuda::gram_operator<f16>>;

device_operator make_operator(const cuda::context& ctx, const stored_bytes& a, const std::byte* on_device,
                              const cuda::workspace& scratch, const cuda::workspace& staging) {
  const auto of = [&]<class T>(T) -> device_operator {
    const auto* const data = reinterpret_cast<const T*>(on_device + a.start);
    return cuda::gram_operator<T>(
        ctx, matrix_view<const T, device_space>(data, a.rows, a.cols, a.row_stride, a.col_stride), scratch,
        staging, most_vectors);
  };
  switch (a.format) {
    case storage_format::f64: return of(double{});
    case storage_format::f32: return of(float{});
    case storage_format::bf16: return of(bf16{});
    case storage_format::f16: return of(f16{});
  }
  core::unknown_value("storage_format", a.format);
}

}  // namespace

struct gpu_expert::implementation {
  gpu::implementation& device;
  slot own;
  std::byte* memory = nullptr;
  std::optional<device_operator> op;

  implementation(gpu::implementation& d, const stored_bytes& a) : device(d), own(d.take()) {
    try {
      must("cudaSetDevice", cudaSetDevice(device.device));
      load(a);
    } catch (...) {
      release();
      throw;
    }
  }
  implementation(const implementation&) = delete;
  implementation& operator=(const implementation&) = delete;
  ~implementation() { release(); }

  void load(const stored_bytes& a) {
    const std::size_t weights = rounded(a.size);
    const std::size_t scratch = cuda::gram_operator<double>::workspace_bytes(a.rows, a.cols, most_vectors);
    memory = static_cast<std::byte*>(take(weights + scratch));
    announce(a);
    copy(a);
    auto ctx = device.context;
    ctx.stream = own.stream;
    op = make_operator(ctx, a, memory, {memory + weights, scratch}, {own.staging, device.staging});
  }
  // Pages of the file come into memory here, and not within a call of the driver, whose lock others wait for.
  void copy(const stored_bytes& a) {
    std::byte* const staged = own.staging + device.staging;
    for (std::size_t at = 0; at < a.size; at += chunk) {
      const std::size_t count = std::min(chunk, a.size - at);
      must("cudaStreamSynchronize", cudaStreamSynchronize(own.stream));
      std::memcpy(staged, a.first + at, count);
      must("cudaMemcpyAsync",
           cudaMemcpyAsync(memory + at, staged, count, cudaMemcpyHostToDevice, own.stream));
    }
  }
  [[nodiscard]] void* take(std::size_t bytes) const {
    void* out = nullptr;
    must("cudaMallocAsync", cudaMallocAsync(&out, bytes, own.stream));
    return out;
  }
  void release() noexcept {
    if (memory != nullptr) {
      cudaFreeAsync(memory, own.stream);
    }
    device.give_back(own);
  }
  [[nodiscard]] index_t dimension() const {
    return std::visit([](const auto& o) { return o.dimension(); }, *op);
  }
  [[nodiscard]] auto vectors(double* data) const {
    return matrix_view<double, device_space>(data, most_vectors, dimension(), stride_of(dimension()), 1);
  }
};

gpu_expert::gpu_expert(gpu& device, const stored_bytes& a)
    : implementation_(std::make_unique<implementation>(*device.implementation_, a)) {}
gpu_expert::~gpu_expert() = default;

double gpu_expert::apply(vector_view<const double> x, vector_view<double> u) {
  return std::visit([&](auto& op) { return op.apply(x, u); }, *implementation_->op);
}

double* gpu_expert::take_vectors(index_t count) {
  core::expect(count <= most_vectors, "gpu_expert: ", count, " vectors of at most ", most_vectors);
  return static_cast<double*>(
      implementation_->take(bytes_of_vectors(most_vectors, implementation_->dimension())));
}
void gpu_expert::give_back(double* vectors) noexcept { cudaFreeAsync(vectors, implementation_->own.stream); }

void gpu_expert::store(double* vectors, index_t k, vector_view<const double> x) {
  std::visit([&](auto& op) { op.store(x, implementation_->vectors(vectors), k); }, *implementation_->op);
}
void gpu_expert::combine(double* vectors, index_t from, vector_view<const double> y,
                         vector_view<double> out) {
  std::visit([&](auto& op) { op.combine(implementation_->vectors(vectors), from, y, out); },
             *implementation_->op);
}
index_t gpu_expert::lanczos(double* vectors, index_t newest, bool is_first, double scale, double before,
                            std::span<lanczos_step> found) {
  const cuda::lanczos_place place{newest, is_first, scale, before};
  const auto some = found.first(std::min<std::size_t>(found.size(), 16));
  return std::visit([&](auto& op) { return op.lanczos(implementation_->vectors(vectors), place, some); },
                    *implementation_->op);
}

}  // namespace verify
