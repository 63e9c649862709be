// AWQ and GPTQ: integer weights that are stored by input columns, decoded here by output rows.
#pragma once

#include <mpi_router/io/packed/integer.hpp>

#include <numeric>

MPIROUTER_BEGIN
namespace packed {

/// W[f, d] = (code[d, f] − zero[d / group, f]) · scale[d / group, f] of AutoAWQ's "gemm" files: qweight I32
/// [cols, rows / 8], qzeros I32 [groups, rows / 8], scales [groups, rows]. In a word the eight outputs 8c, 8c
/// + 1, … lie at the bits 0, 16, 4, 20, 8, 24, 12, 28. The file is input-major: single rows are slow, so use
/// load_all() where there is room. A model of MatrixRows.
class awq_matrix : public detail::grouped_matrix {
 public:
  /// Throws usage_error where one of the three is not as large as it must be, for rows that are no multiple
  /// of 8, and for other widths than 4 bits.
  awq_matrix(std::span<const std::byte> qweight, std::span<const std::byte> qzeros,
             const packed::scales& scales, index_t rows, index_t cols, index_t group, index_t bits = 4)
      : detail::grouped_matrix(rows, cols, bits, group, scales),
        qweight_(qweight.data()),
        qzeros_(qzeros.data()) {
    core::expect(bits == 4, "awq_matrix: codes of ", bits, " bits, not 4");
    core::expect(group > 0, "awq_matrix: groups of ", group, " columns");
    core::expect(rows % 8 == 0, "awq_matrix: ", rows, " rows, eight in each word");
    expect_bytes("awq_matrix: qweight", qweight, cols, rows, rows / 2);
    expect_bytes("awq_matrix: qzeros", qzeros, parts_of(cols, group), rows, rows / 2);
    scales_.expect_grid("awq_matrix", parts_of(cols, group), rows);
  }

  template <Accumulator S>
  void load_row(index_t f, S* out) const noexcept {
    for_each_group(cols_, group_, [&](index_t first, index_t count, index_t g) {
      load_part(f, g, first, count, out + first);
    });
  }
  /// All of W, [rows, cols] row-major.
  template <Accumulator S>
  void load_all(S* out) const noexcept {
    constexpr index_t together = 16;  // columns: one cache line of each row of W
    for_each_group(cols_, group_, [&](index_t begin, index_t in_group, index_t g) {
      for (index_t first = begin; first < begin + in_group; first += together) {
        const index_t count = std::min(together, begin + in_group - first);
        for (index_t f = 0; f < rows_; ++f) {
          load_part(f, g, first, count, out + f * cols_ + first);
        }
      }
    });
  }

 private:
  static constexpr std::array<std::uint8_t, 8> shifts{0, 16, 4, 20, 8, 24, 12, 28};

  template <Accumulator S>
  void load_part(index_t f, index_t g, index_t first, index_t count, S* out) const noexcept {
    const S scale = scales_.at(g, f);
    const int zero = code(qzeros_, g, f);
    for (index_t i = 0; i < count; ++i) {
      out[i] = static_cast<S>(code(qweight_, first + i, f) - zero) * scale;
    }
  }
  [[nodiscard]] int code(const std::byte* words, index_t r, index_t f) const noexcept {
    const auto word = read<std::uint32_t>(words, r * (rows_ / 8) + f / 8);
    return static_cast<int>(word >> shifts[static_cast<std::size_t>(f % 8)] & 15U);
  }

  const std::byte* qweight_;
  const std::byte* qzeros_;
};

/// W[f, d] = (code[d, f] − zero[g, f]) · scale[g, f] of GPTQ files: qweight I32 [cols · bits / 32, rows]
/// holds a stream of codes down its columns, the least significant bit first, 32 / bits inputs in a word or,
/// of three bits, 32 in three; qzeros I32 [groups, rows · bits / 32] the same along its rows, scales [groups,
/// rows]; g is d / group or g_idx[d]. Files of version 1 ("gptq") store zero − 1, which `zero_plus_one` takes
/// back. Input-major, as AWQ. A model of MatrixRows.
class gptq_matrix : public detail::grouped_matrix {
 public:
  /// The widths there are.
  [[nodiscard]] static constexpr bool has_bits(index_t bits) noexcept {
    return bits == 2 || bits == 3 || bits == 4 || bits == 8;
  }
  /// As few codes as fill whole words.
  [[nodiscard]] static constexpr index_t pack_factor(index_t bits) noexcept {
    return 32 / std::gcd(index_t{32}, bits);
  }

  /// Throws usage_error where one of them is not as large as it must be, for widths other than 2, 3, 4 and 8
  /// bits, for rows or cols that do not fill whole words, and where an entry of g_idx is no group.
  gptq_matrix(std::span<const std::byte> qweight, std::span<const std::byte> qzeros,
              const packed::scales& scales, std::span<const std::byte> g_idx, index_t rows, index_t cols,
              index_t bits, index_t group, bool zero_plus_one)
      : detail::grouped_matrix(rows, cols, bits, group, scales),
        qweight_(qweight.data()),
        qzeros_(qzeros.data()),
        zero_plus_one_(zero_plus_one) {
    core::expect(has_bits(bits), "gptq_matrix: codes of ", bits, " bits, not 2, 3, 4 or 8");
    core::expect(group > 0, "gptq_matrix: groups of ", group, " columns");
    core::expect(rows % pack_ == 0 && cols % pack_ == 0, "gptq_matrix: [", rows, ", ", cols, "] codes of ",
                 bits, " bits do not fill words");
    const index_t groups = parts_of(cols, group);
    expect_bytes("gptq_matrix: qweight", qweight, bytes_of_row("gptq_matrix", cols, bits) / 4, rows,
                 4 * rows);
    expect_bytes("gptq_matrix: qzeros", qzeros, groups, rows, bytes_of_row("gptq_matrix", rows, bits));
    scales_.expect_grid("gptq_matrix", groups, rows);
    g_idx_ = group_index("gptq_matrix", g_idx, cols, groups);
  }

  template <Accumulator S>
  void load_row(index_t f, S* out) const noexcept {
    for (index_t first = 0; first < cols_; first += pack_) {
      load_pack(first, f, out);
    }
  }
  /// All of W, [rows, cols] row-major.
  template <Accumulator S>
  void load_all(S* out) const noexcept {
    for (index_t first = 0; first < cols_; first += pack_) {
      for (index_t f = 0; f < rows_; ++f) {
        load_pack(first, f, out + f * cols_);
      }
    }
  }

 private:
  /// The inputs of a pack, from `first` on, of output f, to their places in the row.
  template <Accumulator S>
  void load_pack(index_t first, index_t f, S* row) const noexcept {
    index_t next = first * bits_ / 32 * rows_ + f;  // word
    std::uint64_t stream = 0;
    index_t left = 0;  // bits in it
    index_t current = -1;
    S scale = 0;
    int zero = 0;
    for (index_t d = first; d < first + pack_; ++d) {
      if (left < bits_) {
        stream |= std::uint64_t{read<std::uint32_t>(qweight_, next)} << left;
        next += rows_;
        left += 32;
      }
      const index_t g = g_idx_ ? g_idx_[d] : d / group_;
      if (g != current) {
        current = g;
        scale = scales_.at(g, f);
        zero = zero_point(g, f);
      }
      row[d] = static_cast<S>(static_cast<int>(stream & mask()) - zero) * scale;
      stream >>= bits_;
      left -= bits_;
    }
  }
  [[nodiscard]] std::uint64_t mask() const noexcept { return (std::uint64_t{1} << bits_) - 1; }
  [[nodiscard]] int zero_point(index_t g, index_t f) const noexcept {
    const index_t word = g * (rows_ * bits_ / 32) + f * bits_ / 32;
    const index_t shift = f * bits_ % 32;
    std::uint64_t stored = read<std::uint32_t>(qzeros_, word);
    if (shift + bits_ > 32) {
      stored |= std::uint64_t{read<std::uint32_t>(qzeros_, word + 1)} << 32U;
    }
    return static_cast<int>(stored >> shift & mask()) + (zero_plus_one_ ? 1 : 0);
  }

  index_t pack_ = pack_factor(bits_);
  const std::byte* qweight_;
  const std::byte* qzeros_;
  group_index g_idx_;
  bool zero_plus_one_;
};

}  // namespace packed
MPIROUTER_END
