// What the GPU checks share: device memory with guard zones, random problems in every layout, a count of
// failures. Self-contained: a machine with a GPU often has nothing but the toolkit.
#pragma once

#include <cuda_runtime.h>

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <mpi_router/cuda/router.cuh>
#include <random>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <vector>

namespace gpu_check {

using namespace mpi_router;

inline int checks = 0;
inline int failures = 0;

inline void check(bool condition, const std::string& what) {
  ++checks;
  if (!condition) {
    ++failures;
    if (failures <= 60) {
      std::printf("FAILED: %s\n", what.c_str());
    }
  }
}

inline void must(cudaError_t code, const char* what) {
  if (code != cudaSuccess) {
    throw std::runtime_error(std::string(what) + ": " + cudaGetErrorString(code));
  }
}
inline void sync() { must(cudaDeviceSynchronize(), "cudaDeviceSynchronize"); }

using generator = std::mt19937_64;
inline index_t uniform(generator& g, index_t low, index_t high) {
  return std::uniform_int_distribution<index_t>(low, high)(g);
}

/// Device memory for `size` elements, poisoned with NaNs, between guard zones that intact() looks at.
template <class T>
class device_array {
 public:
  explicit device_array(std::size_t size, std::size_t offset_elements = 0)
      : size_(size),
        offset_(guard + offset_elements * sizeof(T)),
        bytes_(offset_ + size * sizeof(T) + guard) {
    must(cudaMalloc(&memory_, bytes_), "cudaMalloc");
    poison();
  }
  device_array(const std::vector<T>& values, std::size_t offset_elements = 0)
      : device_array(values.size(), offset_elements) {
    must(cudaMemcpy(data(), values.data(), size_ * sizeof(T), cudaMemcpyHostToDevice), "cudaMemcpy");
  }
  device_array(const device_array&) = delete;
  device_array& operator=(const device_array&) = delete;
  ~device_array() { cudaFree(memory_); }

  [[nodiscard]] T* data() const { return reinterpret_cast<T*>(static_cast<char*>(memory_) + offset_); }
  [[nodiscard]] std::vector<T> host() const {
    std::vector<T> out(size_);
    must(cudaMemcpy(out.data(), data(), size_ * sizeof(T), cudaMemcpyDeviceToHost), "cudaMemcpy");
    return out;
  }
  /// Done when it returns: not every stream waits for the default one.
  void poison() const {
    must(cudaMemset(memory_, 0xff, bytes_), "cudaMemset");
    must(cudaStreamSynchronize(nullptr), "cudaStreamSynchronize");
  }
  [[nodiscard]] bool intact() const {
    std::vector<unsigned char> all(bytes_);
    must(cudaMemcpy(all.data(), memory_, bytes_, cudaMemcpyDeviceToHost), "cudaMemcpy");
    for (std::size_t i = 0; i < bytes_; ++i) {
      if ((i < offset_ || i >= offset_ + size_ * sizeof(T)) && all[i] != 0xff) {
        return false;
      }
    }
    return true;
  }

 private:
  static constexpr std::size_t guard = 1024;
  std::size_t size_;
  std::size_t offset_;
  std::size_t bytes_;
  void* memory_ = nullptr;
};

enum class layout {
  nfd,
  n2fd_concatenated,
  n2fd_interleaved,
  ndf,
  nd2f_concatenated,
  nd2f_interleaved,
  padded_fd,
  padded_df,
  both_strided,
  fd_pointers,
  df_pointers
};
constexpr int layouts = 11;
inline const char* name_of(layout l) {
  constexpr const char* names[] = {"nfd",         "n2fd_concatenated", "n2fd_interleaved",
                                   "ndf",         "nd2f_concatenated", "nd2f_interleaved",
                                   "padded_fd",   "padded_df",         "both_strided",
                                   "fd_pointers", "df_pointers"};
  return names[static_cast<int>(l)];
}

/// Experts in memory: an element's place, the buffer around it (gaps hold NaN), and the view of it.
template <class T>
struct experts_in_memory {
  expert_shape shape;
  layout order;
  expert_strides strides;
  index_t size = 0;   // elements, pointers' experts one after the other
  index_t first = 0;  // where the view begins
  bool pointers = false;
  std::vector<index_t> starts;  // of each expert

  experts_in_memory(const expert_shape& s, layout l, generator& g, bool odd_pointers) : shape(s), order(l) {
    const auto [n, f, d] = s;
    const index_t pad = uniform(g, 1, 3) * (uniform(g, 0, 1) ? 8 : 1);
    T* const null = reinterpret_cast<T*>(std::uintptr_t{64});  // only strides are asked of this view
    const auto take = [&](const auto& view) {
      strides = view.strides();
      first = view.data() - null;
    };
    const fused_half half = uniform(g, 0, 1) ? fused_half::gate : fused_half::up;
    switch (l) {
      case layout::nfd:
        take(experts_nfd<device_space>(null, s));
        size = n * f * d;
        break;
      case layout::n2fd_concatenated:
        take(experts_n2fd_concatenated<device_space>(null, s, half));
        size = 2 * n * f * d;
        break;
      case layout::n2fd_interleaved:
        take(experts_n2fd_interleaved<device_space>(null, s, half));
        size = 2 * n * f * d;
        break;
      case layout::ndf:
        take(experts_ndf<device_space>(null, s));
        size = n * f * d;
        break;
      case layout::nd2f_concatenated:
        take(experts_nd2f_concatenated<device_space>(null, s, half));
        size = 2 * n * f * d;
        break;
      case layout::nd2f_interleaved:
        take(experts_nd2f_interleaved<device_space>(null, s, half));
        size = 2 * n * f * d;
        break;
      case layout::padded_fd:
        strides = {f * (d + pad), d + pad, 1};
        size = n * f * (d + pad);
        break;
      case layout::padded_df:
        strides = {d * (f + pad), 1, f + pad};
        size = n * d * (f + pad);
        break;
      case layout::both_strided:
        strides = {f * d * 6, d * 3, 3};
        size = n * f * d * 6;
        break;
      case layout::fd_pointers:
      case layout::df_pointers:
        pointers = true;
        strides = l == layout::fd_pointers ? expert_strides{0, d, 1} : expert_strides{0, 1, f};
        for (index_t e = 0; e < n; ++e) {
          size = (size + 7) / 8 * 8 + (odd_pointers ? uniform(g, 0, 3) : 0);
          starts.push_back(size);
          size += f * d;
        }
    }
    if (!pointers) {
      for (index_t e = 0; e < n; ++e) {
        starts.push_back(first + e * strides.expert);
      }
    }
  }
  [[nodiscard]] index_t at(index_t e, index_t f, index_t d) const {
    return starts[static_cast<std::size_t>(e)] + f * strides.ffn + d * strides.hidden;
  }
};

template <class T>
T make(double x) {
  if constexpr (std::is_same_v<T, double>) {
    return x;
  } else {
    return static_cast<T>(static_cast<float>(x));
  }
}
template <class T>
double value(T x) {
  if constexpr (std::is_same_v<T, double>) {
    return x;
  } else {
    return static_cast<double>(static_cast<float>(x));
  }
}
template <class T>
constexpr const char* type_name = std::is_same_v<T, double>  ? "f64"
                                  : std::is_same_v<T, float> ? "f32"
                                  : std::is_same_v<T, bf16>  ? "bf16"
                                                             : "f16";

/// One random problem: weights in memory and on the device, the same as f64 [N, F, D], and rows.
template <class T, class R>
struct problem {
  using row_type = R;
  experts_in_memory<T> place;
  std::vector<double> a;  // [N, F, D]
  std::vector<double> r;  // [N, D]
  std::vector<T> stored;
  std::vector<R> rows_stored;
  std::size_t offset;
  std::string name;
  device_array<T> device;
  device_array<R> device_rows;
  std::vector<T*> table;
  device_array<T*> device_table;

  struct spec {
    expert_shape shape;
    layout order = layout::nfd;
    double scale = 1.0;
    double row_scale = 1.0;
    int offset = 0;         // elements by which the base is off alignment
    bool specials = false;  // dead rows, zero experts, NaN and inf here and there
  };

  problem(const spec& s, generator& g)
      : place(s.shape, s.order, g, s.offset != 0),
        a(fill_weights(s, g)),
        r(fill_rows(s, g)),
        stored(store(place, a)),
        rows_stored(r.size()),
        offset(static_cast<std::size_t>(s.offset)),
        name(std::string(type_name<T>) + "/" + type_name<R> + " " + name_of(s.order) + " [" +
             std::to_string(s.shape.num_experts) + ", " + std::to_string(s.shape.ffn_dim) + ", " +
             std::to_string(s.shape.hidden_dim) + "] offset " + std::to_string(s.offset) + " scale " +
             std::to_string(std::log10(s.scale)) + "/" + std::to_string(std::log10(s.row_scale)) +
             (s.specials ? " specials" : "")),
        device((round(), stored), offset),
        device_rows(rows_stored),
        table(pointers()),
        device_table(table) {}

  [[nodiscard]] expert_batch_view<const T, device_space> view() const {
    if (place.pointers) {
      return {static_cast<const T* const*>(const_cast<const T**>(device_table.data())), place.shape,
              place.strides};
    }
    return {device.data() + place.first, place.shape, place.strides};
  }
  [[nodiscard]] matrix_view<const R, device_space> rows() const {
    return row_major<device_space>(const_cast<const R*>(device_rows.data()), place.shape.num_experts,
                                   place.shape.hidden_dim);
  }
  [[nodiscard]] double weight(index_t e, index_t f, index_t d) const {
    const auto [n, ff, dd] = place.shape;
    (void)n;
    return a[static_cast<std::size_t>((e * ff + f) * dd + d)];
  }

 private:
  static std::vector<double> fill_weights(const spec& s, generator& g) {
    std::normal_distribution<double> normal;
    const auto [n, f, d] = s.shape;
    std::vector<double> out(static_cast<std::size_t>(n * f * d));
    for (auto& x : out) {
      x = value(make<T>(normal(g) * s.scale));
    }
    if (s.specials) {
      for (index_t e = 0; e < n; ++e) {
        double* const mine = out.data() + e * f * d;
        switch (uniform(g, 0, 7)) {
          case 0: std::fill(mine, mine + f * d, 0.0); break;
          case 1: mine[uniform(g, 0, f * d - 1)] = std::nan(""); break;
          case 2: mine[uniform(g, 0, f * d - 1)] = -HUGE_VAL; break;
          case 3: std::fill(mine, mine + (f / 2) * d, 0.0); break;
          default: break;
        }
      }
    }
    return out;
  }
  static std::vector<double> fill_rows(const spec& s, generator& g) {
    std::normal_distribution<double> normal;
    const auto [n, f, d] = s.shape;
    std::vector<double> out(static_cast<std::size_t>(n * d));
    for (auto& x : out) {
      x = value(make<R>(normal(g) * s.row_scale));
    }
    if (s.specials) {
      for (index_t e = 0; e < n; ++e) {
        double* const mine = out.data() + e * d;
        switch (uniform(g, 0, 9)) {
          case 0: std::fill(mine, mine + d, 0.0); break;
          case 1: mine[uniform(g, 0, d - 1)] = std::nan(""); break;
          case 2: mine[uniform(g, 0, d - 1)] = HUGE_VAL; break;
          default: break;
        }
      }
    }
    return out;
  }
  static std::vector<T> store(const experts_in_memory<T>& place, const std::vector<double>& a) {
    std::vector<T> out(static_cast<std::size_t>(place.size), make<T>(std::nan("")));
    const auto [n, f, d] = place.shape;
    std::size_t i = 0;
    for (index_t e = 0; e < n; ++e) {
      for (index_t j = 0; j < f; ++j) {
        for (index_t k = 0; k < d; ++k) {
          out[static_cast<std::size_t>(place.at(e, j, k))] = make<T>(a[i++]);
        }
      }
    }
    return out;
  }
  int round() {
    for (std::size_t i = 0; i < r.size(); ++i) {
      rows_stored[i] = make<R>(r[i]);
    }
    return 0;
  }
  std::vector<T*> pointers() const {
    std::vector<T*> out;
    for (const index_t start : place.starts) {
      out.push_back(device.data() + start);
    }
    return out;
  }
};

/// The step of one expert in f64.
struct reference_step {
  status state = status::ok;
  std::vector<double> y, z;
  double energy = 0, row_norm = 0, image_norm = 0, rayleigh = 0, residual = 0;

  template <class P>
  reference_step(const P& p, index_t e, const double* r) {
    const auto [n, f, d] = p.place.shape;
    (void)n;
    y.assign(static_cast<std::size_t>(f), 0.0);
    z.assign(static_cast<std::size_t>(d), 0.0);
    double rr = 0;
    for (index_t k = 0; k < d; ++k) {
      rr += r[k] * r[k];
    }
    for (index_t j = 0; j < f; ++j) {
      double s = 0;
      const double* const row = p.a.data() + (e * f + j) * d;
      for (index_t k = 0; k < d; ++k) {
        s += row[k] * r[k];
      }
      y[static_cast<std::size_t>(j)] = s;
      energy += s * s;
      for (index_t k = 0; k < d; ++k) {
        z[static_cast<std::size_t>(k)] += s * row[k];
      }
    }
    double zz = 0;
    for (const double x : z) {
      zz += x * x;
    }
    state = !std::isfinite(rr)   ? status::non_finite
            : rr == 0            ? status::zero_row
            : !std::isfinite(zz) ? status::non_finite
            : zz == 0            ? status::zero_image
                                 : status::ok;
    row_norm = std::sqrt(rr);
    image_norm = std::sqrt(zz);
    rayleigh = energy / rr;
    for (index_t k = 0; k < d; ++k) {
      const double g = z[static_cast<std::size_t>(k)] - rayleigh * r[k];
      residual += g * g;
    }
    residual = std::sqrt(residual) / row_norm;
  }
};

/// Relative difference of two vectors in the Euclidean norm; NaN counts as infinite.
inline double difference(const double* x, const double* reference, index_t n) {
  double top = 0, bottom = 0;
  for (index_t i = 0; i < n; ++i) {
    top += (x[i] - reference[i]) * (x[i] - reference[i]);
    bottom += reference[i] * reference[i];
  }
  const double ratio = bottom == 0 ? std::sqrt(top) : std::sqrt(top / bottom);
  return std::isnan(ratio) ? HUGE_VAL : ratio;
}
inline bool close(double x, double reference, double tolerance) {
  return std::abs(x - reference) <= tolerance * std::abs(reference);
}

template <class T>
std::vector<double> values(const std::vector<T>& x) {
  std::vector<double> out(x.size());
  for (std::size_t i = 0; i < x.size(); ++i) {
    out[i] = value(x[i]);
  }
  return out;
}

}  // namespace gpu_check
