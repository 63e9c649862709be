// Random packed experts in device memory, and the same as f64 on the host, byte by byte.
#pragma once

#include <mpi_router/core/packed_format.hpp>
#include <mpi_router/cuda/decoded_rows.cuh>

#include "gpu_support.hpp"

namespace gpu_check {

using byte_array = std::vector<unsigned char>;

/// How packed experts lie, and what is in them.
struct packed_spec {
  expert_shape shape{};
  int offset = 0;         // bytes by which the first code is off alignment
  bool table = false;     // each expert by an address of its own
  bool specials = false;  // dead rows, experts of zeros, NaN
};

template <class View>
constexpr const char* view_name = "";
template <>
inline constexpr const char* view_name<fp8_view> = "fp8";
template <>
inline constexpr const char* view_name<mxfp4_view> = "mxfp4";
template <>
inline constexpr const char* view_name<mxfp4_blocks_view> = "mxfp4 blocks";
template <>
inline constexpr const char* view_name<q8_0_view> = "q8_0";
template <>
inline constexpr const char* view_name<q4_k_view> = "q4_k";

inline unsigned char any_byte(generator& g) { return static_cast<unsigned char>(uniform(g, 0, 255)); }
inline void put_half(unsigned char* at, generator& g) {  // of about 2^-7
  const auto bits = static_cast<unsigned>(uniform(g, 0x1c00, 0x23ff) | uniform(g, 0, 1) << 15);
  at[0] = static_cast<unsigned char>(bits);
  at[1] = static_cast<unsigned char>(bits >> 8);
}
inline unsigned char any_power(generator& g) { return static_cast<unsigned char>(uniform(g, 115, 125)); }

/// Codes, or blocks, and scales of some experts, with pads between rows.
template <class View>
struct packed_bytes {
  static constexpr bool has_scales = requires(const View& a) { a.scales; };
  View view;  // strides and extents
  index_t expert_bytes = 0;
  index_t scale_bytes = 0;
  byte_array codes, scales;

  packed_bytes(const expert_shape& s, generator& g) {
    const auto [n, f, d] = s;
    view.rows = f;
    view.cols = d;
    const index_t pad = uniform(g, 0, 1) * uniform(g, 1, 3) * 16;
    if constexpr (std::is_same_v<View, fp8_view>) {
      constexpr fp8_scale types[] = {fp8_scale::f32, fp8_scale::bf16, fp8_scale::f16, fp8_scale::e8m0};
      view.scale_type = types[uniform(g, 0, 3)];
      view.block_rows = uniform(g, 0, 1) ? 128 : uniform(g, 1, f + 1);
      view.block_cols = uniform(g, 0, 1) ? 128 : uniform(g, 0, 1) ? d : 8 * uniform(g, 1, 9);
      view.row_bytes = d + pad;
      view.scale_row_bytes =
          packed::parts_of(d, view.block_cols) * mpi_router::detail::kernels::size_of(view.scale_type) +
          uniform(g, 0, 1) * uniform(g, 1, 9);
      fill_fp8(n, g);
    } else if constexpr (std::is_same_v<View, mxfp4_view>) {
      view.row_bytes = d / 2 + pad;
      view.scale_row_bytes = d / 32;
      fill(codes, expert_bytes, n, f * view.row_bytes, g);
      fill(scales, scale_bytes, n, f * view.scale_row_bytes, g);
      for (auto& x : scales) x = any_power(g);
    } else {
      using format = mpi_router::detail::kernels::packed_format<View>;
      view.row_bytes = d / format::block_cols * format::block_bytes + pad;
      fill(codes, expert_bytes, n, f * view.row_bytes, g);
      for (index_t at = 0; at < n * f; ++at) {
        for (index_t b = 0; b < d / format::block_cols; ++b) {
          set_scale(codes.data() + at * view.row_bytes + b * format::block_bytes, g);
        }
      }
    }
  }
  /// Expert e, with the bytes at these addresses.
  [[nodiscard]] View at(const unsigned char* codes_at, const unsigned char* scales_at, index_t e) const {
    View a = view;
    if constexpr (has_scales) {
      a.codes = codes_at + e * expert_bytes;
      a.scales = scales_at + e * scale_bytes;
    } else {
      a.blocks = codes_at + e * expert_bytes;
    }
    return a;
  }
  [[nodiscard]] View host(index_t e) const { return at(codes.data(), scales.data(), e); }

  void make_zero(index_t e) { std::fill_n(codes.begin() + e * expert_bytes, expert_bytes, std::uint8_t{0}); }
  /// A number of expert e that is none.
  void make_nan(index_t e) {
    unsigned char* const at = codes.data() + e * expert_bytes;
    if constexpr (std::is_same_v<View, fp8_view>) {
      at[0] = 0x7f;
    } else if constexpr (std::is_same_v<View, mxfp4_view>) {
      scales[static_cast<std::size_t>(e * scale_bytes)] = 255;
    } else if constexpr (std::is_same_v<View, mxfp4_blocks_view>) {
      at[0] = 255;
    } else {
      at[0] = 0;
      at[1] = 0x7e;
    }
  }

 private:
  static void fill(byte_array& bytes, index_t& each, index_t n, index_t size, generator& g) {
    each = size;
    bytes.resize(static_cast<std::size_t>(n * size));
    for (auto& x : bytes) x = any_byte(g);
  }
  void fill_fp8(index_t n, generator& g) {
    fill(codes, expert_bytes, n, view.rows * view.row_bytes, g);
    for (auto& x : codes) x = (x & 0x7f) == 0x7f ? std::uint8_t{0} : x;
    const index_t rows = packed::parts_of(view.rows, view.block_rows);
    const index_t columns = packed::parts_of(view.cols, view.block_cols);
    const index_t size = mpi_router::detail::kernels::size_of(view.scale_type);
    fill(scales, scale_bytes, n, rows * view.scale_row_bytes, g);
    for (index_t row = 0; row < n * rows; ++row) {
      for (index_t c = 0; c < columns; ++c)
        put_scale(scales.data() + row * view.scale_row_bytes + c * size, g);
    }
  }
  void put_scale(unsigned char* at, generator& g) const {
    const auto sign = static_cast<unsigned char>(uniform(g, 0, 1) << 7);
    switch (view.scale_type) {
      case fp8_scale::e8m0: *at = any_power(g); break;
      case fp8_scale::f16: put_half(at, g); break;
      case fp8_scale::bf16: at[1] = static_cast<unsigned char>(0x3b | sign); break;
      case fp8_scale::f32: at[3] = static_cast<unsigned char>(0x3b | sign); break;
    }
  }
  static void set_scale(unsigned char* block, generator& g) {
    if constexpr (std::is_same_v<View, mxfp4_blocks_view>) {
      block[0] = any_power(g);
    } else {
      put_half(block, g);
      if constexpr (std::is_same_v<View, q4_k_view>) put_half(block + 2, g);
    }
  }
};

/// One random problem of packed experts.
template <class View, class Row>
struct packed_problem {
  using row_type = Row;
  struct {
    expert_shape shape{};
  } place;
  std::string name;
  std::vector<double> r;  // [N, D]
  packed_bytes<View> bytes;
  std::vector<double> a;  // [N, F, D]
  std::vector<Row> rows_stored;
  device_array<unsigned char> device_codes, device_scales;
  device_array<Row> device_rows;
  std::vector<cuda::packed_address> addresses;
  device_array<cuda::packed_address> device_table;
  bool table;

  packed_problem(const packed_spec& s, generator& g)
      : place{s.shape},
        name(std::string(view_name<View>) + " [" + std::to_string(s.shape.num_experts) + ", " +
             std::to_string(s.shape.ffn_dim) + ", " + std::to_string(s.shape.hidden_dim) + "] offset " +
             std::to_string(s.offset) + (s.table ? " table" : "") + (s.specials ? " specials" : "")),
        r(random_rows(s, g)),
        bytes(random_bytes(s, g)),
        a(decoded()),
        rows_stored(stored()),
        device_codes(bytes.codes, static_cast<std::size_t>(s.offset)),
        device_scales(bytes.scales, static_cast<std::size_t>(s.offset)),
        device_rows(rows_stored),
        addresses(addresses_of_all()),
        device_table(addresses),
        table(s.table) {}

  [[nodiscard]] auto view() const {
    const View first = bytes.at(device_codes.data(), device_scales.data(), 0);
    return table
               ? cuda::packed_experts(bytes.view, device_table.data(), place.shape.num_experts)
               : cuda::packed_experts(first, place.shape.num_experts, bytes.expert_bytes, bytes.scale_bytes);
  }
  [[nodiscard]] auto rows() const {
    return row_major<device_space>(const_cast<const Row*>(device_rows.data()), place.shape.num_experts,
                                   place.shape.hidden_dim);
  }
  [[nodiscard]] double weight(index_t e, index_t f, index_t d) const {
    const auto [n, fs, ds] = place.shape;
    return a[static_cast<std::size_t>((e * fs + f) * ds + d)];
  }

 private:
  static std::vector<double> random_rows(const packed_spec& s, generator& g) {
    std::normal_distribution<double> normal;
    const auto [n, f, d] = s.shape;
    std::vector<double> out(static_cast<std::size_t>(n * d));
    for (auto& x : out) x = value(make<Row>(normal(g)));
    for (index_t e = 0; s.specials && e < n; ++e) {
      if (uniform(g, 0, 4) == 0) std::fill_n(out.begin() + e * d, d, 0.0);
      if (uniform(g, 0, 4) == 0) out[static_cast<std::size_t>(e * d + d / 2)] = std::nan("");
    }
    return out;
  }
  static packed_bytes<View> random_bytes(const packed_spec& s, generator& g) {
    packed_bytes<View> out(s.shape, g);
    for (index_t e = 0; s.specials && e < s.shape.num_experts; ++e) {
      if (uniform(g, 0, 3) == 0) out.make_nan(e);
      if constexpr (std::is_same_v<View, fp8_view> || std::is_same_v<View, mxfp4_view>) {
        if (uniform(g, 0, 3) == 0) out.make_zero(e);
      }
    }
    return out;
  }
  [[nodiscard]] std::vector<double> decoded() const {
    const auto [n, f, d] = place.shape;
    std::vector<double> out;
    for (index_t e = 0; e < n; ++e) {
      const View one = bytes.host(e);
      for (index_t j = 0; j < f; ++j) {
        for (index_t k = 0; k < d; ++k) {
          out.push_back(mpi_router::detail::kernels::packed_format<View>::at(one, j, k));
        }
      }
    }
    return out;
  }
  [[nodiscard]] std::vector<Row> stored() const {
    std::vector<Row> out(r.size());
    for (std::size_t i = 0; i < r.size(); ++i) out[i] = make<Row>(r[i]);
    return out;
  }
  [[nodiscard]] std::vector<cuda::packed_address> addresses_of_all() const {
    std::vector<cuda::packed_address> out;
    for (index_t e = 0; e < place.shape.num_experts; ++e) {
      out.push_back(
          {device_codes.data() + e * bytes.expert_bytes, device_scales.data() + e * bytes.scale_bytes});
    }
    return out;
  }
};

}  // namespace gpu_check
