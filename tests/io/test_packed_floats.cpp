// FP8 and FP4 weights against a decoder that follows their definitions, element by element.
#include "packed.hpp"

namespace test_packed_floats {
using namespace packed_test;
using packed::fp4_matrix;
using packed::fp8_matrix;

TEST_CASE("every code of the small floats") {
  for (unsigned code = 0; code < 256; ++code) {
    const auto byte = static_cast<std::uint8_t>(code);
    CAPTURE(code);
    CHECK(same(packed::e2m1(byte), static_cast<float>(e2m1_values[code & 15U])));
    CHECK(std::signbit(packed::e2m1(byte)) == ((code & 8U) != 0));
    CHECK(packed::twice_e2m1(byte) == 2 * e2m1_values[code & 15U]);
    CHECK(same(packed::e4m3fn(byte), static_cast<float>(e4m3_value(code))));
    CHECK(same(packed::e8m0(byte), static_cast<float>(e8m0_value(code))));
    const double infinity = std::numeric_limits<double>::infinity();
    const double half = (code & 0x7fU) == 0x7cU  ? ((code & 0x80U) != 0 ? -infinity : infinity)
                        : (code & 0x7fU) > 0x7cU ? std::numeric_limits<double>::quiet_NaN()
                                                 : small_float(code, 2, 15);
    CHECK(same(packed::e5m2(byte), static_cast<float>(half)));
    CHECK(std::signbit(packed::e4m3fn(byte)) == (code >> 7 != 0));
    CHECK(std::signbit(packed::e5m2(byte)) == (code >> 7 != 0));
    const double nan = std::numeric_limits<double>::quiet_NaN();
    CHECK(same(packed::e4m3fnuz(byte), static_cast<float>(code == 0x80U ? nan : small_float(code, 3, 8))));
    CHECK(same(packed::e5m2fnuz(byte), static_cast<float>(code == 0x80U ? nan : small_float(code, 2, 16))));
  }
  static_assert(packed::e4m3fnuz(0x7f) == 240 && packed::e5m2fnuz(0xff) == -57344);
  static_assert(packed::e4m3fn(0x7e) == 448 && packed::e8m0(130) == 8 && packed::e2m1(15) == -6);
}

TEST_CASE("every code of binary16 is what core makes of it") {
  index_t different = 0;
  for (unsigned code = 0; code < 0x10000U; ++code) {
    const float expected = widen<float>(std::bit_cast<f16>(static_cast<std::uint16_t>(code)));
    const float got = packed::binary16(static_cast<std::uint16_t>(code));
    different += std::bit_cast<std::uint32_t>(got) == std::bit_cast<std::uint32_t>(expected) ? 0 : 1;
  }
  CHECK(different == 0);
}

TEST_CASE("scales of every type") {
  random_source random(1);
  for (const auto type : all_scale_types) {
    const scale_grid grid(random, type, 3, 5);
    const packed::scales scales = grid.view();
    CHECK(scales.rows() == 3);
    CHECK(scales.cols() == 5);
    CHECK(scales.type() == type);
    for (index_t r = 0; r < 3; ++r) {
      for (index_t c = 0; c < 5; ++c) CHECK(same(scales.at(r, c), static_cast<float>(grid.at(r, c))));
    }
  }
}

TEST_CASE("FP8: every size of block, partial ones too") {
  random_source random(2);
  struct shape {
    index_t rows, cols, block_rows, block_cols;
  };
  for (const auto& s : {shape{1, 1, 1, 1}, shape{5, 37, 2, 16}, shape{3, 131, 1, 131}, shape{7, 40, 7, 1},
                        shape{4, 33, 4, 33}, shape{129, 130, 128, 128}, shape{2, 5, 128, 128},
                        shape{0, 4, 1, 4}, shape{3, 0, 1, 1}, shape{3, 64, 2, 32}}) {
    for (const auto type : all_scale_types) {
      using enum packed::fp8_type;
      for (const auto kind : {e4m3, e5m2, e4m3fnuz, e5m2fnuz}) {
        const odd_bytes codes = random_bytes(random, s.rows * s.cols);
        const scale_grid scales(random, type, packed::parts_of(s.rows, s.block_rows),
                                packed::parts_of(s.cols, s.block_cols));
        const fp8_matrix m(codes.span(), s.rows, s.cols, scales.view(), s.block_rows, s.block_cols, kind);
        CAPTURE(s.rows);
        CAPTURE(s.cols);
        CAPTURE(static_cast<int>(type));
        CHECK(differences(m, [&](index_t f, index_t d) {
                const auto code = static_cast<std::uint8_t>(codes.at(f * s.cols + d));
                const double number = kind == e5m2       ? double{packed::e5m2(code)}
                                      : kind == e4m3     ? e4m3_value(code)
                                      : code == 0x80U    ? std::numeric_limits<double>::quiet_NaN()
                                      : kind == e4m3fnuz ? small_float(code, 3, 8)
                                                         : small_float(code, 2, 16);
                return number * scales.at(f / s.block_rows, d / s.block_cols);
              }) == 0);
      }
    }
  }
}

TEST_CASE("FP4: low half first, groups of 16 and 32, a factor for all") {
  random_source random(3);
  for (const index_t cols : {0, 2, 16, 30, 32, 96, 98, 256, 590}) {
    for (const index_t group : {16, 32}) {
      for (const auto type : all_scale_types) {
        for (const double global : {1.0, -0.3}) {
          const index_t rows = 3;
          const odd_bytes codes = random_bytes(random, rows * cols / 2);
          const scale_grid scales(random, type, rows, packed::parts_of(cols, group));
          const fp4_matrix m(codes.span(), rows, cols, scales.view(), group, global);
          CAPTURE(cols);
          CAPTURE(group);
          CHECK(differences(m, [&]<class S>(index_t f, index_t d, S) {
                  const unsigned byte = codes.at((f * cols + d) / 2);
                  const double factor{static_cast<S>(global)};
                  const auto scale = static_cast<S>(scales.at(f, d / group) * factor);
                  return e2m1_values[d % 2 == 0 ? byte & 15U : byte >> 4] * double{scale};
                }) == 0);
        }
      }
    }
  }
}

TEST_CASE("what they are called") {
  random_source random(4);
  const odd_bytes codes(256);
  const auto fp8 = [&](index_t block_rows, index_t block_cols,
                       packed::fp8_type kind = packed::fp8_type::e4m3) {
    const scale_grid scales(random, packed::scale_type::f32, packed::parts_of(4, block_rows),
                            packed::parts_of(64, block_cols));
    return packed::any_matrix(fp8_matrix(codes.span(), 4, 64, scales.view(), block_rows, block_cols, kind))
        .description();
  };
  CHECK(fp8(2, 32) == "FP8 E4M3, 2×32 blocks");
  CHECK(fp8(1, 64) == "FP8 E4M3, a scale for each row");
  CHECK(fp8(4, 1) == "FP8 E4M3, a scale for each column");
  CHECK(fp8(4, 64, packed::fp8_type::e5m2) == "FP8 E5M2, one scale");
  CHECK(fp8(2, 64) == "FP8 E4M3, 2×64 blocks");
  CHECK(fp8(1, 1) == "FP8 E4M3, 1×1 blocks");
  const auto fp4 = [&](packed::scale_type type, index_t group) {
    const scale_grid scales(random, type, 4, packed::parts_of(64, group));
    return packed::any_matrix(fp4_matrix(codes.span().first(128), 4, 64, scales.view(), group)).description();
  };
  CHECK(fp4(packed::scale_type::e8m0, 32) == "MXFP4, groups of 32");
  CHECK(fp4(packed::scale_type::e4m3, 16) == "NVFP4, groups of 16");
  CHECK(fp4(packed::scale_type::bf16, 32) == "FP4 E2M1, groups of 32");
  CHECK(fp4(packed::scale_type::e8m0, 16) == "FP4 E2M1, groups of 16");
}

#if MPIROUTER_HAS_EXCEPTIONS
TEST_CASE("sizes that do not fit are refused, both named") {
  const odd_bytes bytes(1000);
  const auto some = [&](std::size_t count) { return bytes.span().first(count); };
  const packed::scales ones(packed::scale_type::one, {}, 2, 2);
  const auto scales = [&](std::size_t count, index_t rows, index_t cols) {
    return packed::scales(packed::scale_type::bf16, some(count), rows, cols);
  };
  CHECK(refused([&] { scales(11, 2, 3); }, "scales: [2, 3] takes 2 x 6 bytes, but there are 11"));
  CHECK(refused([&] { scales(0, -1, 3); }, "negative extent in [-1, 3]"));
  CHECK(refused([&] { scales(0, 1, -3); }, "scales: -3 columns cannot be"));
  CHECK(refused([&] { scales(8, index_t{1} << 61, index_t{1} << 56); }, "bytes, but there are 8"));
  CHECK(refused([&] { scales(0, index_t{1} << 62, 2); }, "x 4 bytes, but there are 0"));  // 2^64 in all
  CHECK(refused([&] { packed::scales(static_cast<packed::scale_type>(9), {}, 0, 0); },
                "scale_type: 9 is none of its values"));
  CHECK(refused([&] { packed::scales(packed::scale_type::one, some(1), 1, 1); }, "there are 1"));

  CHECK(refused([&] { fp8_matrix(some(5), 2, 3, ones, 1, 2); },
                "fp8_matrix: [2, 3] takes 2 x 3 bytes, but there are 5"));
  CHECK(refused([&] { fp8_matrix(some(6), 2, 3, ones, 1, 3); },
                "fp8_matrix: needs scales [2, 1], but they are [2, 2]"));
  CHECK(refused([&] { fp8_matrix(some(6), 2, 3, ones, 2, 2); },
                "fp8_matrix: needs scales [1, 2], but they are [2, 2]"));
  CHECK(refused([&] { fp8_matrix(some(6), 2, 3, ones, 0, 2); }, "fp8_matrix: blocks of [0, 2]"));
  CHECK(refused([&] { fp8_matrix(some(6), 2, 3, ones, 1, -2); }, "fp8_matrix: blocks of [1, -2]"));

  CHECK(refused([&] { fp4_matrix(some(31), 2, 32, ones, 16); },
                "fp4_matrix: [2, 32] takes 2 x 16 bytes, but there are 31"));
  CHECK(refused([&] { fp4_matrix(some(32), 2, 32, ones, 32); },
                "fp4_matrix: needs scales [2, 1], but they are [2, 2]"));
  CHECK(refused([&] { fp4_matrix(some(31), 2, 31, ones, 16); }, "31 columns, two in each byte"));
  CHECK(refused([&] { fp4_matrix(some(32), 2, 32, ones, 8); }, "groups of 8 columns, not 16 or 32"));
}
#endif

TEST_CASE("FP4 packed along the rows") {
  random_source random(12);
  for (const index_t group : {16, 32}) {
    const index_t rows = 96;
    const index_t cols = 5;
    const odd_bytes codes = random_bytes(random, rows / 2 * cols);
    const scale_grid scales(random, packed::scale_type::e4m3, rows / group, cols);
    const packed::turned_fp4_matrix m(codes.span(), rows, cols, scales.view(), group, 0.5);
    CHECK(differences(m, [&](index_t d, index_t f) {
            const unsigned byte = codes.at(d / 2 * cols + f);
            return e2m1_values[byte >> (d % 2 * 4) & 15U] * (scales.at(d / group, f) * 0.5);
          }) == 0);
  }
  const odd_bytes codes = random_bytes(random, 16);
  const scale_grid scales(random, packed::scale_type::e4m3, 1, 2);
  const auto refused = [&](index_t rows, index_t cols, index_t group) {
    return message_of([&] {
      static_cast<void>(packed::turned_fp4_matrix(codes.span(), rows, cols, scales.view(), group));
    });
  };
  CHECK(refused(16, 2, 16).empty());
  CHECK(contains(refused(15, 2, 16), "15 rows, two in each byte"));
  CHECK(contains(refused(16, 2, 8), "groups of 8 rows, not 16 or 32"));
  CHECK(contains(refused(32, 1, 16), "needs scales [2, 1]"));
}

}  // namespace test_packed_floats
