// Integer weights against a decoder that picks each code out of the bits one by one.
#include "packed.hpp"

namespace test_packed_integers {
using namespace packed_test;

namespace {

/// Random codes of some bits for a matrix.
struct code_grid {
  std::vector<unsigned> values;
  index_t cols;
  code_grid(random_source& random, index_t rows, index_t columns, index_t bits) : cols(columns) {
    for (index_t i = 0; i < rows * columns; ++i) {
      values.push_back(static_cast<unsigned>(random.integer(0, (index_t{1} << bits) - 1)));
    }
  }
  [[nodiscard]] unsigned at(index_t r, index_t c) const {
    return values[static_cast<std::size_t>(r * cols + c)];
  }
};

/// A dense stream of codes for each row, in whole words.
odd_bytes rows_of_words(const code_grid& codes, index_t rows, index_t bits) {
  const index_t words = (codes.cols * bits + 31) / 32;
  odd_bytes out(rows * words * 4);
  for (index_t r = 0; r < rows; ++r) {
    for (index_t c = 0; c < codes.cols; ++c) out.put(32 * words * r + bits * c, bits, codes.at(r, c));
  }
  return out;
}

/// Codes put down the columns: element r of column c is in the r-th place of the stream of that column, the
/// words of which lie one column count apart.
odd_bytes columns_of_words(const code_grid& codes, index_t rows, index_t bits) {
  const index_t words = (rows * bits + 31) / 32;
  odd_bytes out(codes.cols * words * 4);
  for (index_t r = 0; r < rows; ++r) {
    for (index_t c = 0; c < codes.cols; ++c) {
      for (index_t k = 0; k < bits; ++k) {
        const index_t bit = r * bits + k;
        out.put(32 * (bit / 32 * codes.cols + c) + bit % 32, 1, codes.at(r, c) >> k & 1U);
      }
    }
  }
  return out;
}

odd_bytes words_of(const std::vector<index_t>& values) {
  odd_bytes out;
  for (const index_t v : values) out.append(static_cast<std::int32_t>(v));
  return out;
}

/// A group for every column, without order.
std::vector<index_t> random_groups(random_source& random, index_t cols, index_t groups) {
  std::vector<index_t> out(static_cast<std::size_t>(cols));
  for (index_t& g : out) g = random.integer(0, groups - 1);
  return out;
}

constexpr packed::scale_type bf16_scales = packed::scale_type::bf16;

}  // namespace

TEST_CASE("int8: a scale for each row, group, or all") {
  random_source random(11);
  for (const auto& [rows, cols, group] : {std::array<index_t, 3>{3, 37, 0},
                                          {3, 37, 16},
                                          {1, 1, 0},
                                          {4, 64, 32},
                                          {0, 3, 0},
                                          {2, 0, 0},
                                          {1, 40, 7}}) {
    for (const bool alike : {false, true}) {
      const odd_bytes codes = random_bytes(random, rows * cols);
      const index_t size = group == 0 ? std::max<index_t>(cols, 1) : group;
      const scale_grid scales(random, packed::scale_type::f32, alike ? 1 : rows,
                              packed::parts_of(cols, size));
      const packed::int8_matrix m(codes.span(), rows, cols, scales.view(), group);
      CHECK(differences(m, [&](index_t f, index_t d) {
              const int code =
                  static_cast<int>(codes.at(f * cols + d)) - (codes.at(f * cols + d) > 127 ? 256 : 0);
              return code * scales.at(alike ? 0 : f, d / size);
            }) == 0);
      CHECK(packed::any_matrix(m).description() ==
            (size < cols ? core::concatenate("int8, groups of ", size) : "int8"));
      const odd_bytes zeros = random_bytes(random, scales.rows * scales.cols);
      const packed::int8_matrix asymmetric(codes.span(), rows, cols, scales.view(), group, 1, zeros.span());
      CHECK(differences(asymmetric, [&](index_t f, index_t d) {
              const auto number = [](unsigned byte) {
                return static_cast<int>(static_cast<std::int8_t>(byte));
              };
              const index_t r = alike ? 0 : f;
              return (number(codes.at(f * cols + d)) - number(zeros.at(r * scales.cols + d / size))) *
                     scales.at(r, d / size);
            }) == 0);
    }
  }
}

TEST_CASE("int8: blocks, the last of them partial") {
  random_source random(20);
  for (const auto& [rows, cols, high, wide] : {std::array<index_t, 4>{5, 37, 2, 16},
                                               {129, 130, 128, 128},
                                               {3, 8, 4, 8},
                                               {6, 9, 3, 1},
                                               {16, 130, 128, 128},
                                               {5, 6, 5, 1}}) {
    const odd_bytes codes = random_bytes(random, rows * cols);
    const scale_grid scales(random, packed::scale_type::f32, packed::parts_of(rows, high),
                            packed::parts_of(cols, wide));
    const packed::int8_matrix m(codes.span(), rows, cols, scales.view(), wide, 1, {}, high);
    CHECK(differences(m, [&](index_t f, index_t d) {
            return static_cast<std::int8_t>(codes.at(f * cols + d)) * scales.at(f / high, d / wide);
          }) == 0);
    CHECK(packed::any_matrix(m).description() ==
          (high == rows && wide == 1    ? "int8, a scale for each column"
           : high < rows || wide < cols ? core::concatenate("int8, ", high, "×", wide, " blocks")
                                        : "int8"));
  }
}

TEST_CASE("pack-quantized: every width, with and without zero points and activation order") {
  random_source random(12);
  for (index_t bits = 2; bits <= 8; ++bits) {
    for (const auto& [rows, cols, group] : {std::array<index_t, 3>{3, 64, 32},
                                            {2, 37, 32},
                                            {5, 31, 8},
                                            {1, 1, 1},
                                            {33, 96, 128},
                                            {2, 256, 32},
                                            {2, 611, 64},
                                            {2, 100, 48},
                                            {3, 0, 4}}) {
      for (int with = 0; with < 4; ++with) {
        const index_t groups = packed::parts_of(cols, group);
        const code_grid codes(random, rows, cols, bits);
        const code_grid zeros(random, rows, groups, bits);
        const scale_grid scales(random, bf16_scales, rows, groups);
        const auto order = random_groups(random, cols, groups);
        const odd_bytes words = rows_of_words(codes, rows, bits);
        const odd_bytes zero_words = columns_of_words(zeros, rows, bits);
        const odd_bytes order_words = words_of(order);
        const packed::pack_quantized_matrix m(
            words.span(), rows, cols, bits, scales.view(), group,
            with % 2 == 0 ? std::span<const std::byte>{} : zero_words.span(),
            with < 2 ? std::span<const std::byte>{} : order_words.span());
        CAPTURE(bits);
        CAPTURE(cols);
        CAPTURE(with);
        CHECK(differences(m, [&](index_t f, index_t d) {
                const index_t g = with < 2 ? d / group : order[static_cast<std::size_t>(d)];
                const int zero = with % 2 == 0 ? 1 << (bits - 1) : static_cast<int>(zeros.at(f, g));
                return (static_cast<int>(codes.at(f, d)) - zero) * scales.at(f, g);
              }) == 0);
      }
    }
  }
}

TEST_CASE("pack-quantized: an order with -1 in it is not in use") {
  random_source random(13);
  const code_grid codes(random, 2, 8, 4);
  const scale_grid scales(random, bf16_scales, 2, 2);
  const odd_bytes words = rows_of_words(codes, 2, 4);
  const odd_bytes order = words_of({1, 1, 1, 1, 1, 1, 1, -1});
  const packed::pack_quantized_matrix m(words.span(), 2, 8, 4, scales.view(), 4, {}, order.span());
  CHECK(differences(m, [&](index_t f, index_t d) {
          return (static_cast<int>(codes.at(f, d)) - 8) * scales.at(f, d / 4);
        }) == 0);
  CHECK(packed::any_matrix(m).description() == "int4, groups of 4");
}

TEST_CASE("MLX: scale times code plus bias, of either sign") {
  random_source random(14);
  for (const index_t bits : {2, 3, 4, 5, 6, 8}) {
    for (const auto& [rows, cols, group] : {std::array<index_t, 3>{3, 128, 64},
                                            {2, 256, 64},
                                            {1, 611, 32},
                                            {2, 96, 32},
                                            {1, 37, 64},
                                            {2, 50, 20},
                                            {0, 32, 32}}) {
      const index_t groups = packed::parts_of(cols, group);
      const code_grid codes(random, rows, cols, bits);
      const scale_grid scales(random, bf16_scales, rows, groups);
      const scale_grid biases(random, packed::scale_type::f16, rows, groups);
      const odd_bytes words = rows_of_words(codes, rows, bits);
      const packed::mlx_matrix m(words.span(), rows, cols, bits, scales.view(), biases.view(), group);
      CAPTURE(bits);
      CAPTURE(cols);
      CHECK(differences(m, [&](index_t f, index_t d) {
              return scales.at(f, d / group) * codes.at(f, d) + biases.at(f, d / group);
            }) == 0);
    }
  }
}

TEST_CASE("AWQ: outputs in its own order within a word, inputs one after the other") {
  random_source random(15);
  const index_t place[8] = {0, 4, 1, 5, 2, 6, 3, 7};  // the nibble of output 8c + i
  for (const auto& [rows, cols, group] :
       {std::array<index_t, 3>{8, 1, 1}, {16, 37, 16}, {24, 64, 128}, {8, 33, 5}, {0, 4, 4}, {8, 0, 4}}) {
    for (const auto type : {packed::scale_type::f16, packed::scale_type::bf16}) {
      const index_t groups = packed::parts_of(cols, group);
      const code_grid codes(random, cols, rows, 4);
      const code_grid zeros(random, groups, rows, 4);
      const auto pack = [&](const code_grid& grid, index_t lines) {
        odd_bytes out(lines * rows / 2);
        for (index_t r = 0; r < lines; ++r) {
          for (index_t f = 0; f < rows; ++f)
            out.put(4 * (r * rows + f / 8 * 8 + place[f % 8]), 4, grid.at(r, f));
        }
        return out;
      };
      const odd_bytes weights = pack(codes, cols);
      const odd_bytes zero_words = pack(zeros, groups);
      const scale_grid scales(random, type, groups, rows);
      const packed::awq_matrix m(weights.span(), zero_words.span(), scales.view(), rows, cols, group);
      CAPTURE(rows);
      CAPTURE(cols);
      CHECK(differences(m, [&](index_t f, index_t d) {
              const index_t g = d / group;
              return (static_cast<int>(codes.at(d, f)) - static_cast<int>(zeros.at(g, f))) * scales.at(g, f);
            }) == 0);
    }
  }
}

TEST_CASE("GPTQ: inputs down the words, zeros of both versions, any order of activation") {
  random_source random(16);
  for (const index_t bits : {2, 3, 4, 8}) {
    for (const auto& [rows, cols, group] : {std::array<index_t, 3>{16, 48, 16},
                                            {32, 64, 128},
                                            {64, 96, 32},
                                            {32, 32, 5},
                                            {0, 32, 4},
                                            {16, 16, 3},
                                            {48, 32, 32},
                                            {16, 0, 4},
                                            {0, 16, 4}}) {
      if (bits == 3 && (rows % 32 != 0 || cols % 32 != 0)) continue;  // three words hold 32
      for (int with = 0; with < 4; ++with) {
        const index_t groups = packed::parts_of(cols, group);
        const code_grid codes(random, cols, rows, bits);
        const code_grid zeros(random, groups, rows, bits);
        const auto order = random_groups(random, cols, groups);
        const odd_bytes weights = columns_of_words(codes, cols, bits);
        const odd_bytes zero_words = rows_of_words(zeros, groups, bits);
        const odd_bytes order_words = words_of(order);
        const scale_grid scales(random, packed::scale_type::f16, groups, rows);
        const bool plus_one = with % 2 != 0;
        const packed::gptq_matrix m(weights.span(), zero_words.span(), scales.view(),
                                    with < 2 ? std::span<const std::byte>{} : order_words.span(), rows, cols,
                                    bits, group, plus_one);
        CAPTURE(bits);
        CAPTURE(cols);
        CAPTURE(with);
        CHECK(differences(m, [&](index_t f, index_t d) {
                const index_t g = with < 2 ? d / group : order[static_cast<std::size_t>(d)];
                const int zero = static_cast<int>(zeros.at(g, f)) + (plus_one ? 1 : 0);
                return (static_cast<int>(codes.at(d, f)) - zero) * scales.at(g, f);
              }) == 0);
      }
    }
  }
}

TEST_CASE("bitsandbytes: high half first, blocks without regard to rows") {
  random_source random(17);
  for (const auto& [rows, cols, blocksize] : {std::array<index_t, 3>{4, 32, 64},
                                              {3, 37, 64},
                                              {5, 7, 4},
                                              {1, 1, 64},
                                              {2, 200, 64},
                                              {0, 5, 64},
                                              {5, 0, 64}}) {
    const index_t count = rows * cols;
    const index_t blocks = packed::parts_of(count, blocksize);
    const odd_bytes codes = random_bytes(random, packed::parts_of(count, 2));
    const scale_grid table(random, packed::scale_type::f32, 1, 16);
    const scale_grid maxima(random, packed::scale_type::f32, 1, blocks);
    const auto code = [&](index_t f, index_t d) {
      const index_t i = f * cols + d;
      return codes.at(i / 2) >> (i % 2 == 0 ? 4 : 0) & 15U;
    };
    CAPTURE(rows);
    CAPTURE(cols);
    const packed::nf4_matrix plain(codes.span(), rows, cols, table.bytes.span(),
                                   packed::block_maxima(maxima.bytes.span()), blocksize);
    CHECK(differences(plain, [&](index_t f, index_t d) {
            return table.at(0, code(f, d)) * maxima.at(0, (f * cols + d) / blocksize);
          }) == 0);

    // Quantised twice, with numbers of few bits, so that each block's maximum is exact.
    const index_t nested_blocksize = 2;
    const odd_bytes max_codes = random_bytes(random, blocks);
    odd_bytes nested_map;
    odd_bytes nested_max;
    for (int i = 0; i < 256; ++i) nested_map.append(static_cast<float>(i - 128) / 64);
    for (index_t i = 0; i < packed::parts_of(blocks, nested_blocksize); ++i) {
      nested_max.append(static_cast<float>(i + 3) / 8);
    }
    const packed::block_maxima nested(max_codes.span(), nested_max.span(), nested_map.span(),
                                      nested_blocksize, 0.75F);
    const packed::nf4_matrix twice(codes.span(), rows, cols, table.bytes.span(), nested, blocksize);
    CHECK(differences(twice, [&](index_t f, index_t d) {
            const index_t block = (f * cols + d) / blocksize;
            const index_t outer = block / nested_blocksize;
            const double most =
                (static_cast<int>(max_codes.at(block)) - 128) / 64.0 * (static_cast<double>(outer + 3) / 8) +
                0.75;
            return table.at(0, code(f, d)) * most;
          }) == 0);
  }
}

TEST_CASE("what they are called") {
  random_source random(18);
  const odd_bytes bytes(4096);
  const auto some = [&](std::size_t count) { return bytes.span().first(count); };
  const scale_grid by_row(random, bf16_scales, 8, 1);
  const scale_grid by_group(random, bf16_scales, 8, 2);
  const scale_grid by_input(random, bf16_scales, 2, 8);
  using packed::any_matrix;
  CHECK(any_matrix(packed::pack_quantized_matrix(some(256), 8, 64, 4, by_row.view(), 64)).description() ==
        "int4");
  CHECK(any_matrix(packed::mlx_matrix(some(192), 8, 64, 3, by_group.view(), by_group.view(), 32))
            .description() == "MLX affine, 3 bits, groups of 32");
  CHECK(any_matrix(packed::awq_matrix(some(256), some(8), by_input.view(), 8, 64, 32)).description() ==
        "AWQ int4, groups of 32");
  CHECK(any_matrix(packed::gptq_matrix(some(256), some(8), by_input.view(), {}, 8, 64, 4, 32, true))
            .description() == "GPTQ int4, groups of 32");
  CHECK(any_matrix(packed::nf4_matrix(some(64), 2, 64, some(64), packed::block_maxima(some(8)), 64))
            .description() == "bitsandbytes 4 bits, blocks of 64");
}

#if MPIROUTER_HAS_EXCEPTIONS
TEST_CASE("sizes and widths that do not fit are refused, both named") {
  random_source random(19);
  const odd_bytes bytes(4096);
  const auto some = [&](std::size_t count) { return bytes.span().first(count); };
  const auto ones = [](index_t rows, index_t cols) {
    return packed::scales(packed::scale_type::one, {}, rows, cols);
  };
  using packed::awq_matrix;
  using packed::block_maxima;
  using packed::gptq_matrix;
  using packed::int8_matrix;
  using packed::mlx_matrix;
  using packed::nf4_matrix;
  using packed::pack_quantized_matrix;

  CHECK(refused([&] { int8_matrix(some(7), 2, 4, ones(2, 1)); }, "int8_matrix: [2, 4] takes 2 x 4 bytes"));
  CHECK(refused([&] { int8_matrix(some(8), 2, 4, ones(2, 2)); }, "needs scales [2, 1], but they are [2, 2]"));
  CHECK(refused([&] { int8_matrix(some(8), 2, 4, ones(3, 1)); }, "needs scales [2, 1], but they are [3, 1]"));
  CHECK(refused([&] { int8_matrix(some(8), 2, 4, ones(2, 1), -1); }, "int8_matrix: groups of -1"));
  CHECK(refused([&] { int8_matrix(some(8), 2, 4, ones(2, 1), 0, 1, some(3)); },
                "int8_matrix: zero points: [2, 1] takes 2 x 1 bytes, but there are 3"));

  for (const index_t bits : {1, 9}) {
    CHECK(refused([&] { pack_quantized_matrix(some(8), 2, 8, bits, ones(2, 1), 8); }, "bits, not 2 to 8"));
  }
  CHECK(refused([&] { pack_quantized_matrix(some(8), 2, 9, 4, ones(2, 1), 9); },
                "pack_quantized_matrix: [2, 9] takes 2 x 8 bytes, but there are 8"));
  CHECK(refused([&] { pack_quantized_matrix(some(8), 2, 8, 4, ones(2, 1), 4); }, "needs scales [2, 2]"));
  CHECK(refused([&] { pack_quantized_matrix(some(8), 2, 8, 4, ones(2, 1), 0); }, "groups of 0"));
  CHECK(refused([&] { pack_quantized_matrix(some(8), 2, 8, 4, ones(2, 1), 8, some(8)); },
                "zero points: [1, 1] takes 1 x 4 bytes, but there are 8"));
  CHECK(refused([&] { pack_quantized_matrix(some(8), 2, 8, 4, ones(2, 1), 8, {}, some(31)); },
                "g_idx of 8 columns takes 32 bytes, but there are 31"));
  const odd_bytes order = words_of({0, 0, 2, 0, 0, 0, 0, 0});
  CHECK(refused([&] { pack_quantized_matrix(some(8), 2, 8, 4, ones(2, 2), 4, {}, order.span()); },
                "pack_quantized_matrix: g_idx[2] is 2, of 2 groups"));

  for (const index_t bits : {1, 7, 9}) {
    CHECK(refused([&] { mlx_matrix(some(8), 2, 8, bits, ones(2, 1), ones(2, 1), 8); },
                  "bits, not 2, 3, 4, 5, 6 or 8"));
  }
  CHECK(refused([&] { mlx_matrix(some(9), 2, 8, 4, ones(2, 1), ones(2, 1), 8); }, "takes 2 x 4 bytes"));
  CHECK(
      refused([&] { mlx_matrix(some(8), 2, 8, 4, ones(2, 2), ones(2, 1), 8); }, "mlx_matrix: needs scales"));
  CHECK(refused([&] { mlx_matrix(some(8), 2, 8, 4, ones(2, 1), ones(1, 2), 8); },
                "mlx_matrix: biases: needs scales [2, 1], but they are [1, 2]"));
  CHECK(refused([&] { mlx_matrix(some(8), 2, 8, 4, ones(2, 1), ones(2, 1), -8); }, "groups of -8"));

  CHECK(refused([&] { awq_matrix(some(31), some(4), ones(1, 8), 8, 8, 8); },
                "awq_matrix: qweight: [8, 8] takes 8 x 4 bytes, but there are 31"));
  CHECK(refused([&] { awq_matrix(some(32), some(8), ones(1, 8), 8, 8, 8); },
                "awq_matrix: qzeros: [1, 8] takes 1 x 4 bytes, but there are 8"));
  CHECK(refused([&] { awq_matrix(some(32), some(4), ones(8, 1), 8, 8, 8); }, "needs scales [1, 8]"));
  CHECK(refused([&] { awq_matrix(some(32), some(4), ones(1, 8), 8, 8, 0); }, "groups of 0"));
  CHECK(refused([&] { awq_matrix(some(32), some(4), ones(1, 4), 4, 8, 8); }, "4 rows, eight in each word"));
  CHECK(refused([&] { awq_matrix(some(32), some(4), ones(1, 8), 8, 8, 8, 8); }, "codes of 8 bits, not 4"));

  CHECK(refused([&] { gptq_matrix(some(31), some(4), ones(1, 8), {}, 8, 8, 4, 8, true); },
                "gptq_matrix: qweight: [1, 8] takes 1 x 32 bytes, but there are 31"));
  CHECK(refused([&] { gptq_matrix(some(32), some(5), ones(1, 8), {}, 8, 8, 4, 8, true); },
                "gptq_matrix: qzeros: [1, 8] takes 1 x 4 bytes, but there are 5"));
  CHECK(refused([&] { gptq_matrix(some(32), some(4), ones(2, 8), {}, 8, 8, 4, 8, true); },
                "needs scales [1, 8], but they are [2, 8]"));
  CHECK(refused([&] { gptq_matrix(some(32), some(4), ones(1, 8), some(4), 8, 8, 4, 8, true); },
                "g_idx of 8 columns takes 32 bytes, but there are 4"));
  CHECK(refused([&] { gptq_matrix(some(32), some(4), ones(1, 8), {}, 8, 8, 5, 8, true); },
                "codes of 5 bits, not 2, 3, 4 or 8"));
  CHECK(refused([&] { gptq_matrix(some(32), some(4), ones(1, 8), {}, 8, 32, 3, 8, true); },
                "[8, 32] codes of 3 bits do not fill words"));
  CHECK(refused([&] { gptq_matrix(some(32), some(4), ones(1, 8), {}, 4, 8, 4, 8, true); },
                "do not fill words"));
  CHECK(refused([&] { gptq_matrix(some(32), some(4), ones(1, 8), {}, 8, 12, 4, 8, true); },
                "do not fill words"));
  CHECK(refused([&] { gptq_matrix(some(32), some(4), ones(1, 8), {}, 8, 8, 4, -8, true); }, "groups of -8"));
  const odd_bytes negative = words_of({0, 0, 0, 0, 0, 0, 0, -1});
  CHECK(refused([&] { gptq_matrix(some(32), some(4), ones(1, 8), negative.span(), 8, 8, 4, 8, true); },
                "gptq_matrix: g_idx[7] is -1, of 1 groups"));

  const block_maxima two(some(8));
  CHECK(refused([&] { nf4_matrix(some(64), 2, 65, some(64), two, 65); },
                "takes 65 x 1 bytes, but there are 64"));
  CHECK(refused([&] { nf4_matrix(some(64), 2, 64, some(60), two, 64); }, "the table takes 64 bytes"));
  CHECK(refused([&] { nf4_matrix(some(64), 2, 64, some(64), two, 32); },
                "nf4_matrix: [2, 64] has 4 blocks, but there are 2 maxima"));
  CHECK(refused([&] { nf4_matrix(some(64), 2, 64, some(64), two, 0); }, "blocks of 0"));
  CHECK(refused([&] { nf4_matrix(some(0), index_t{1} << 40, index_t{1} << 40, some(64), two, 64); },
                "nf4_matrix: the shape"));
  CHECK(refused([&] { nf4_matrix(some(0), -1, 2, some(64), two, 64); }, "nf4_matrix: the shape [-1, 2]"));
  CHECK(refused([&] { (void)block_maxima(some(7)); }, "block_maxima: 7 bytes of floats"));
  CHECK(refused([&] { (void)block_maxima(some(3), some(4), some(1024), 2, 0.0F); },
                "nested_absmax: [2, 1] takes 2 x 4 bytes, but there are 4"));
  CHECK(refused([&] { (void)block_maxima(some(3), some(8), some(1000), 2, 0.0F); }, "takes 1024 bytes"));
  CHECK(refused([&] { (void)block_maxima(some(3), some(8), some(1024), 0, 0.0F); }, "nested blocks of 0"));
}
#endif

}  // namespace test_packed_integers
