// ggml's block types: each element is found by where the layout puts it, and computed in double. All products
// and sums here are exact in double, so that f32 rounds once, as the decoder does, and double not at all.
#include "packed.hpp"

namespace test_ggml {
using namespace packed_test;
using packed::ggml_matrix;
using packed::ggml_type;

namespace {

/// One block of bytes.
struct block_view {
  const odd_bytes* bytes;
  index_t begin;
  [[nodiscard]] int u8(index_t i) const { return static_cast<int>(bytes->at(begin + i)); }
  [[nodiscard]] int i8(index_t i) const { return u8(i) > 127 ? u8(i) - 256 : u8(i); }
  [[nodiscard]] int u16(index_t i) const { return u8(i) + 256 * u8(i + 1); }
  [[nodiscard]] double f16(index_t i) const {
    const int e = u16(i) >> 10 & 31;
    const double m = (u16(i) & 1023) / 1024.0;
    const double magnitude = e == 0    ? std::ldexp(m, -14)
                             : e == 31 ? (m > 0 ? std::numeric_limits<double>::quiet_NaN()
                                                : std::numeric_limits<double>::infinity())
                                       : std::ldexp(1 + m, e - 15);
    return u16(i) >> 15 != 0 ? -magnitude : magnitude;
  }
  [[nodiscard]] int bit(index_t from, index_t i) const { return u8(from + i / 8) >> (i % 8) & 1; }
  /// The four bits of element e < 2n where byte i holds elements i and n + i.
  [[nodiscard]] int half(index_t from, index_t n, index_t e) const {
    return e < n ? u8(from + e) & 15 : u8(from + e - n) >> 4;
  }
};

double q8_0(const block_view& b, index_t e) { return b.f16(0) * b.i8(2 + e); }
double q4_0(const block_view& b, index_t e) { return b.f16(0) * (b.half(2, 16, e) - 8); }
double q4_1(const block_view& b, index_t e) { return b.f16(0) * b.half(4, 16, e) + b.f16(2); }
double q5_0(const block_view& b, index_t e) { return b.f16(0) * (b.half(6, 16, e) + 16 * b.bit(2, e) - 16); }
double q5_1(const block_view& b, index_t e) {
  return b.f16(0) * (b.half(8, 16, e) + 16 * b.bit(4, e)) + b.f16(2);
}

/// Six-bit numbers j < 8 (scales) and 8 <= j < 16 (minima) in twelve bytes: the first four of each lie whole
/// in one byte, of the others the lower four bits in the last four bytes and the upper two above the first
/// four.
int six_bits(const block_view& b, index_t from, index_t j) {
  const index_t k = j % 8;
  const bool is_minimum = j >= 8;
  if (k < 4) return b.u8(from + k + (is_minimum ? 4 : 0)) % 64;
  const int low = is_minimum ? b.u8(from + 4 + k) / 16 : b.u8(from + 4 + k) % 16;
  return low + 16 * (b.u8(from + k - 4 + (is_minimum ? 4 : 0)) / 64);
}
double k_value(const block_view& b, index_t e, int q) {
  const index_t part = e / 32;
  return b.f16(0) * six_bits(b, 4, part) * q - b.f16(2) * six_bits(b, 4, 8 + part);
}
int k_nibble(const block_view& b, index_t from, index_t e) { return b.half(from + e / 64 * 32, 32, e % 64); }
double q4_k(const block_view& b, index_t e) { return k_value(b, e, k_nibble(b, 16, e)); }
double q5_k(const block_view& b, index_t e) {
  return k_value(b, e, k_nibble(b, 48, e) + 16 * (b.u8(16 + e % 32) >> (e / 32) & 1));
}
double q6_k(const block_view& b, index_t e) {
  const index_t h = e / 128;
  const index_t k = e % 128 / 32;
  const index_t l = e % 32;
  const int low = k < 2 ? b.u8(64 * h + 32 * k + l) % 16 : b.u8(64 * h + 32 * (k - 2) + l) / 16;
  const int high = b.u8(128 + 32 * h + l) >> (2 * k) & 3;
  return b.f16(208) * b.i8(192 + e / 16) * (low + 16 * high - 32);
}
double q2_k(const block_view& b, index_t e) {
  const int q = b.u8(16 + 32 * (e / 128) + e % 32) >> (2 * (e % 128 / 32)) & 3;
  return b.f16(80) * (b.u8(e / 16) % 16) * q - b.f16(82) * (b.u8(e / 16) >> 4);
}
double q3_k(const block_view& b, index_t e) {
  const int q = b.u8(32 + 32 * (e / 128) + e % 32) >> (2 * (e % 128 / 32)) & 3;
  const bool whole = (b.u8(e % 32) >> (e / 32) & 1) != 0;
  const index_t s = e / 16;
  const int low = s < 8 ? b.u8(96 + s) % 16 : b.u8(96 + s - 8) / 16;
  const int high = b.u8(104 + s % 4) >> (2 * (s / 4)) & 3;
  return b.f16(108) * (low + 16 * high - 32) * (whole ? q : q - 4);
}

constexpr int iq4_table[16] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};
double iq4_nl(const block_view& b, index_t e) { return b.f16(0) * iq4_table[b.half(2, 16, e)]; }
double iq4_xs(const block_view& b, index_t e) {
  const index_t part = e / 32;
  const int low = part % 2 == 0 ? b.u8(4 + part / 2) % 16 : b.u8(4 + part / 2) / 16;
  const int high = b.u16(2) >> (2 * part) & 3;
  return b.f16(0) * (low + 16 * high - 32) * iq4_table[b.half(8 + 16 * part, 16, e % 32)];
}
double mxfp4(const block_view& b, index_t e) {
  return e2m1_values[b.half(1, 16, e)] * e8m0_value(static_cast<unsigned>(b.u8(0)));
}
double nvfp4(const block_view& b, index_t e) {
  const int code = b.u8(e / 16);
  const double scale = code == 127 ? 0 : small_float(static_cast<unsigned>(code) & 127U, 3, 7);
  return e2m1_values[b.half(4 + 8 * (e / 16), 8, e % 16)] * scale;
}
double f32(const block_view& b, index_t) {
  return double{packed::read<float>(b.bytes->span().data() + b.begin)};
}
double f16_value(const block_view& b, index_t) { return b.f16(0); }
double bf16_value(const block_view& b, index_t) {
  return double{std::bit_cast<float>(static_cast<std::uint32_t>(b.u16(0)) << 16)};
}

struct decoded_type {
  ggml_type type;
  const char* name;
  index_t elements;
  index_t bytes;
  double (*value)(const block_view&, index_t);
};
constexpr decoded_type decoded_types[] = {
    {ggml_type::f32, "F32", 1, 4, f32},
    {ggml_type::f16, "F16", 1, 2, f16_value},
    {ggml_type::bf16, "BF16", 1, 2, bf16_value},
    {ggml_type::q8_0, "Q8_0", 32, 34, q8_0},
    {ggml_type::q4_0, "Q4_0", 32, 18, q4_0},
    {ggml_type::q4_1, "Q4_1", 32, 20, q4_1},
    {ggml_type::q5_0, "Q5_0", 32, 22, q5_0},
    {ggml_type::q5_1, "Q5_1", 32, 24, q5_1},
    {ggml_type::q2_k, "Q2_K", 256, 84, q2_k},
    {ggml_type::q3_k, "Q3_K", 256, 110, q3_k},
    {ggml_type::q4_k, "Q4_K", 256, 144, q4_k},
    {ggml_type::q5_k, "Q5_K", 256, 176, q5_k},
    {ggml_type::q6_k, "Q6_K", 256, 210, q6_k},
    {ggml_type::iq4_nl, "IQ4_NL", 32, 18, iq4_nl},
    {ggml_type::iq4_xs, "IQ4_XS", 256, 136, iq4_xs},
    {ggml_type::mxfp4, "MXFP4", 32, 17, mxfp4},
    {ggml_type::nvfp4, "NVFP4", 64, 36, nvfp4},
};

}  // namespace

TEST_CASE("every block type, every bit of a block") {
  random_source random(21);
  for (const auto& type : decoded_types) {
    CAPTURE(type.name);
    CHECK(packed::name_of(type.type) == type.name);
    CHECK(packed::ggml_block_of(type.type).elements == type.elements);
    CHECK(packed::ggml_block_of(type.type).bytes == type.bytes);
    CHECK(packed::is_decoded(type.type));
    for (const index_t blocks : {0, 1, 3}) {
      const index_t rows = 60;
      const index_t cols = blocks * type.elements;
      const odd_bytes bytes = random_bytes(random, rows * blocks * type.bytes);
      const ggml_matrix m(type.type, bytes.span(), rows, cols);
      CHECK(packed::any_matrix(m).description() == type.name);
      CHECK(differences(m, [&](index_t f, index_t d) {
              const index_t block = f * blocks + d / type.elements;
              return type.value({&bytes, block * type.bytes}, d % type.elements);
            }) == 0);
      const ggml_matrix scaled(type.type, bytes.span(), rows, cols, -0.37F);
      CHECK(scaled.scale() == -0.37F);
      CHECK(differences(scaled, [&]<class S>(index_t f, index_t d, S) {
              const index_t block = f * blocks + d / type.elements;
              const double value = type.value({&bytes, block * type.bytes}, d % type.elements);
              return double{static_cast<S>(value)} * double{-0.37F};
            }) == 0);
    }
  }
}

TEST_CASE("rows that lie apart are those without gaps") {
  random_source random(22);
  for (const auto& type : decoded_types) {
    CAPTURE(type.name);
    const odd_bytes bytes = random_bytes(random, 6 * type.bytes);
    const ggml_matrix every_other(type.type, bytes.span().data() + type.bytes, 3, type.elements,
                                  2 * type.bytes);
    CHECK(every_other.row_bytes() == 2 * type.bytes);
    CHECK(differences(every_other, [&](index_t f, index_t d) {
            return type.value({&bytes, (2 * f + 1) * type.bytes}, d);
          }) == 0);
  }
#if MPIROUTER_HAS_EXCEPTIONS
  const odd_bytes bytes(300);
  CHECK(refused([&] { ggml_matrix(ggml_type::q8_0, bytes.span().data(), 2, 64, 67); },
                "Q8_0: rows of 68 bytes, 67 bytes apart"));
  CHECK(refused([&] { ggml_matrix(ggml_type::q8_0, bytes.span().data(), -1, 64, 68); },
                "Q8_0: negative extent in [-1, 64]"));
  CHECK(refused([&] { ggml_matrix(ggml_type::q8_0, bytes.span().data(), 1, 63, 68); }, "63 columns"));
#endif
}

TEST_CASE("the scales of MXFP4 and NVFP4 that are no numbers, or beyond them") {
  for (const int code : {0, 1, 127, 128, 254, 255}) {
    odd_bytes mx(17);
    odd_bytes nv(36);
    mx[0] = static_cast<std::byte>(code);
    for (index_t i = 0; i < 16; ++i) mx[1 + i] = static_cast<std::byte>(0x72);
    for (index_t i = 0; i < 36; ++i) nv[i] = static_cast<std::byte>(i < 4 ? code : 0x72);
    CAPTURE(code);
    CHECK(differences(ggml_matrix(ggml_type::mxfp4, mx.span(), 1, 32),
                      [&](index_t, index_t d) { return mxfp4({&mx, 0}, d); }) == 0);
    CHECK(differences(ggml_matrix(ggml_type::nvfp4, nv.span(), 1, 64),
                      [&](index_t, index_t d) { return nvfp4({&nv, 0}, d); }) == 0);
  }
}

TEST_CASE("types that are known and not decoded say why") {
  struct refused_type {
    ggml_type type;
    const char* why;
    index_t elements;
    index_t bytes;
  };
  for (const auto& t : {refused_type{ggml_type::iq2_xxs, "IQ2_XXS: codebook types are not decoded", 256, 66},
                        refused_type{ggml_type::iq2_xs, "IQ2_XS: codebook", 256, 74},
                        refused_type{ggml_type::iq2_s, "IQ2_S: codebook", 256, 82},
                        refused_type{ggml_type::iq3_xxs, "IQ3_XXS: codebook", 256, 98},
                        refused_type{ggml_type::iq3_s, "IQ3_S: codebook", 256, 110},
                        refused_type{ggml_type::iq1_s, "IQ1_S: codebook", 256, 50},
                        refused_type{ggml_type::iq1_m, "IQ1_M: codebook", 256, 56},
                        refused_type{ggml_type::tq1_0, "TQ1_0: ternary types are not decoded", 256, 54},
                        refused_type{ggml_type::tq2_0, "TQ2_0: ternary", 256, 66},
                        refused_type{ggml_type::q8_1, "Q8_1: a type of intermediate results", 32, 36},
                        refused_type{ggml_type::q8_k, "Q8_K: a type of intermediate results", 256, 292},
                        refused_type{ggml_type::i8, "I8: not a type that weights", 1, 1},
                        refused_type{ggml_type::i16, "I16: not a type that weights", 1, 2},
                        refused_type{ggml_type::i32, "I32: not a type that weights", 1, 4},
                        refused_type{ggml_type::i64, "I64: not a type that weights", 1, 8},
                        refused_type{ggml_type::f64, "F64: not a type that weights", 1, 8},
                        refused_type{ggml_type::q1_0, "Q1_0: not decoded", 128, 18},
                        refused_type{ggml_type::q2_0, "Q2_0: not decoded", 64, 18}}) {
    CAPTURE(t.why);
    CHECK(!packed::is_decoded(t.type));
    CHECK(packed::ggml_block_of(t.type).elements == t.elements);
    CHECK(packed::ggml_block_of(t.type).bytes == t.bytes);
    CHECK(contains(packed::refusal_of(t.type), t.why));
#if MPIROUTER_HAS_EXCEPTIONS
    CHECK(refused([&] { ggml_matrix(t.type, {}, 0, 0); }, t.why));
#endif
  }
  CHECK(packed::refusal_of(ggml_type::q4_k).empty());
  CHECK(packed::is_known(ggml_type::q4_k));
  for (const unsigned number : {4U, 5U, 31U, 36U, 38U, 43U, 99U, 4000000000U}) {
    CHECK(!packed::is_known(static_cast<ggml_type>(number)));
  }
}

#if MPIROUTER_HAS_EXCEPTIONS
TEST_CASE("sizes that do not fit are refused, both named") {
  const odd_bytes bytes(300);
  const auto some = [&](std::size_t count) { return bytes.span().first(count); };
  CHECK(refused([&] { ggml_matrix(ggml_type::q8_0, some(67), 2, 32); },
                "Q8_0: [2, 32] takes 2 x 34 bytes, but there are 67"));
  CHECK(refused([&] { ggml_matrix(ggml_type::q4_k, some(144), 1, 255); },
                "Q4_K: 255 columns, in blocks of 256"));
  CHECK(refused([&] { ggml_matrix(ggml_type::f32, some(0), -1, 1); }, "F32: negative extent in [-1, 1]"));
  CHECK(refused([&] { ggml_matrix(ggml_type::f32, some(0), 1, -1); }, "F32: negative extent in [1, -1]"));
  CHECK(refused([&] { ggml_matrix(ggml_type::f32, some(0), 4, index_t{1} << 61); }, "columns cannot be"));
  CHECK(refused([&] { ggml_matrix(ggml_type::f32, some(0), index_t{1} << 62, 4); }, "but there are 0"));
  CHECK(refused([&] { ggml_matrix(static_cast<ggml_type>(4), some(0), 0, 0); },
                "ggml_type: 4 is none of its values"));
}
#endif

}  // namespace test_ggml
