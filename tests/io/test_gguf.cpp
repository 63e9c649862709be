// GGUF files: what is in them is found, and every kind of damage is refused with one line that says where.
#include "gguf.hpp"

#include <support/random.hpp>

#include <cstring>

namespace test_gguf {
using namespace mpi_router;
using namespace io_test;

namespace {

const temporary_folder& scratch() {
  static const temporary_folder folder;
  return folder;
}

std::string refusal(const std::string& bytes) { return refusal_of<gguf_file>(scratch() / "bad.gguf", bytes); }
void check_refused(const std::string& bytes, const std::string& reason) {
  const std::string message = refusal(bytes);
  CAPTURE(message);
  CHECK(contains(message, reason));
}

gguf_file opened(const gguf_bytes& file) {
  const auto path = scratch() / "good.gguf";
  write_bytes(path, file.bytes());
  return gguf_file(path);
}

/// Metadata of every type, and three tensors.
gguf_bytes sample() {
  gguf_bytes file;
  file.metadata = {
      entry("u8", 0, raw(std::uint8_t{200})),
      entry("i8", 1, raw(std::int8_t{-3})),
      entry("u16", 2, raw(std::uint16_t{60000})),
      entry("i16", 3, raw(std::int16_t{-300})),
      entry("u32", 4, raw(std::uint32_t{4000000000})),
      entry("i32", 5, raw(std::int32_t{7})),
      entry("f32", 6, raw(0.25F)),
      entry("yes", 7, raw(std::uint8_t{1})),
      entry("no", 7, raw(std::uint8_t{0})),
      entry("text", 8, raw_text("some text")),
      entry("numbers", 9,
            raw(std::uint32_t{3}) + raw(std::uint64_t{2}) + raw(std::int16_t{5}) + raw(std::int16_t{-6})),
      entry("texts", 9, raw(std::uint32_t{8}) + raw(std::uint64_t{2}) + raw_text("a") + raw_text("bc")),
      entry("none", 9, raw(std::uint32_t{8}) + raw(std::uint64_t{0})),
      entry("u64", 10, raw(std::uint64_t{1} << 63)),
      entry("i64", 11, raw(std::int64_t{-1} << 40)),
      entry("f64", 12, raw(-1.5))};
  file.tensors = {tensor_entry("b", {32, 2}, 8, 32), tensor_entry("a", {3}, 0, 0),
                  tensor_entry("c", {}, 30, 128)};
  file.data = std::string(130, 'x');
  return file;
}

}  // namespace

TEST_CASE("metadata of every type are found by key") {
  const gguf_file file = opened(sample());
  CHECK(file.metadata().size() == 16);
  CHECK(file.count("u8") == 200U);
  CHECK(file.count("u16") == 60000U);
  CHECK(file.count("u32") == 4000000000U);
  CHECK(file.count("i32") == 7U);
  CHECK(file.count("u64") == std::uint64_t{1} << 63);
  for (const char* none : {"i8", "i16", "i64", "f32", "yes", "text", "numbers", "absent"}) {
    CAPTURE(none);
    CHECK(!file.count(none));
  }
  CHECK(std::get<std::int64_t>(*file.find_value("i8")) == -3);
  CHECK(std::get<std::int64_t>(*file.find_value("i16")) == -300);
  CHECK(std::get<std::int64_t>(*file.find_value("i64")) == -(std::int64_t{1} << 40));
  CHECK(std::get<double>(*file.find_value("f32")) == 0.25);
  CHECK(std::get<double>(*file.find_value("f64")) == -1.5);
  CHECK(std::get<bool>(*file.find_value("yes")));
  CHECK(!std::get<bool>(*file.find_value("no")));
  CHECK(file.text("text") == "some text");
  CHECK(!file.text("u8"));
  CHECK(!file.text("absent"));
  CHECK(file.find_value("absent") == nullptr);
}

TEST_CASE("lists: numbers by their place, text only counted") {
  const gguf_file file = opened(sample());
  const auto& numbers = std::get<gguf_list>(*file.find_value("numbers"));
  CHECK(numbers.type == gguf_type::i16);
  CHECK(numbers.size == 2);
  CHECK(std::get<std::int64_t>(numbers.number(0).value()) == 5);
  CHECK(std::get<std::int64_t>(numbers.number(1).value()) == -6);
  CHECK(!numbers.number(2));
  CHECK(!numbers.number(-1));
  const auto& texts = std::get<gguf_list>(*file.find_value("texts"));
  CHECK(texts.type == gguf_type::string);
  CHECK(texts.size == 2);
  CHECK(texts.bytes.size() == 19);
  CHECK(!texts.number(0));
  CHECK(std::get<gguf_list>(*file.find_value("none")).size == 0);
}

TEST_CASE("tensors: the slowest axis first, in the order of their bytes, and found by name") {
  for (const std::uint32_t version : {2U, 3U}) {
    gguf_bytes bytes = sample();
    bytes.version = version;
    bytes.data[0] = 'A';
    bytes.data[32] = 'B';
    bytes.data[128] = 'C';
    gguf_file first = opened(bytes);
    const gguf_file file = std::move(first);
    REQUIRE(file.tensors().size() == 3);
    const gguf_tensor& a = file.tensors()[0];
    const gguf_tensor& b = file.tensors()[1];
    const gguf_tensor& c = file.tensors()[2];
    CHECK(a.name() == "a");
    CHECK(to_string(a.shape()) == "[3]");
    CHECK(a.bytes().size() == 12);
    CHECK(a.bytes()[0] == std::byte{'A'});
    CHECK(a.type() == packed::ggml_type::f32);
    CHECK(to_string(b.shape()) == "[2, 32]");
    CHECK(b.rank() == 2);
    CHECK(b.bytes().size() == 68);
    CHECK(b.bytes()[0] == std::byte{'B'});
    CHECK(b.type() == packed::ggml_type::q8_0);
    CHECK(c.rank() == 0);
    CHECK(c.bytes().size() == 2);
    CHECK(c.bytes()[0] == std::byte{'C'});
    CHECK(file.find("b") == &b);
    CHECK(file.find("a") == &a);
    CHECK(file.find("d") == nullptr);
    CHECK(file.find("") == nullptr);
    CHECK(a.file() == file.path());
    CHECK(file.bytes().size() == bytes.bytes().size());
    CHECK(contains(message_of([&] { b.fail("reason ", 3); }), "good.gguf: tensor 'b': reason 3"));
  }
}

TEST_CASE("a file without tensors, and other alignments") {
  gguf_bytes file;
  CHECK(opened(file).tensors().empty());
  write_bytes(scratch() / "short.gguf", file.header());  // no padding where there is nothing behind it
  CHECK(gguf_file(scratch() / "short.gguf").metadata().empty());
  for (const std::uint32_t alignment : {1U, 8U, 64U, 4096U}) {
    file = sample();
    file.metadata = {entry("general.alignment", 4, raw(alignment))};
    file.alignment = alignment;
    file.tensors = {tensor_entry("a", {1}, 0, 0), tensor_entry("b", {1}, 0, std::max(alignment, 4U))};
    file.data = "1234" + std::string(std::max(alignment, 4U) - 4, '-') + "5678";
    const gguf_file read = opened(file);
    CHECK(std::memcmp(read.find("a")->bytes().data(), "1234", 4) == 0);
    CHECK(std::memcmp(read.find("b")->bytes().data(), "5678", 4) == 0);
  }
}

TEST_CASE("what is no GGUF file, or one of another kind") {
  check_refused("", "is empty");
  check_refused("GGU", "is text, not a checkpoint; it begins 'GGU'");
  check_refused(std::string("\x01\x02\x03\xff and more", 13),
                "is no GGUF file: it does not begin with 'GGUF'");
  check_refused("GGUF\3", "is cut short: a GGUF file of 5 bytes");
  gguf_bytes file = sample();
  for (const std::uint32_t version : {0U, 1U, 4U, 0x00030003U}) {
    file.version = version;
    check_refused(file.bytes(),
                  "is a GGUF file of version " + std::to_string(version) + "; versions 2 and 3 are read");
  }
  for (const std::uint32_t version : {0x02000000U, 0x03000000U}) {
    file.version = version;
    check_refused(file.bytes(), "is a big-endian GGUF file; only little-endian ones are read");
  }
  file.magic = "FUGG";
  check_refused(file.bytes(), "is a big-endian GGUF file");
#ifndef _WIN32
  CHECK(contains(message_of([] { gguf_file null("/dev/null"); }), "/dev/null: is not a regular file"));
#endif
  CHECK(contains(message_of([] { gguf_file(scratch() / "absent"); }), "absent: cannot be opened"));
}

TEST_CASE("a file that is cut short, anywhere, says so") {
  const gguf_bytes file = sample();
  const std::string whole = file.bytes();
  const std::size_t header = file.header().size();
  for (std::size_t size = 4; size < whole.size(); ++size) {
    CAPTURE(size);
    const std::string message = refusal(whole.substr(0, size));
    CHECK(contains(message, "is cut short"));
    if (size >= 8 && size < 24) CHECK(contains(message, "inside its beginning"));
    if (size >= 24 && size < header)
      CHECK((contains(message, "inside metadata entry") || contains(message, "inside tensor")));
  }
  check_refused(whole.substr(0, 30),
                "is cut short inside metadata entry 1 of 16: it takes 8 bytes at 24, the file has 30");
  check_refused(whole.substr(0, header - 1), "inside tensor 3 of 3");
  check_refused(whole.substr(0, whole.size() - 1),
                "tensor 'c': is cut short: it takes 2 bytes at 128 of the data, which have 129");
}

TEST_CASE("counts that lie are not believed") {
  const std::uint64_t huge = ~std::uint64_t{0};
  const std::string begin = "GGUF" + raw(std::uint32_t{3});
  check_refused(begin + raw(huge) + raw(std::uint64_t{0}),
                "is cut short inside tensor 1 of 18446744073709551615");
  check_refused(begin + raw(std::uint64_t{0}) + raw(huge),
                "is cut short inside metadata entry 1 of 18446744073709551615");
  check_refused(begin + raw(std::uint64_t{0}) + raw(std::uint64_t{1}) + raw(huge) + "key",
                "it takes 18446744073709551615 bytes at 32");
  gguf_bytes file;
  const auto with = [&](const std::string& value, std::uint32_t type) {
    file.metadata = {entry("key", type, value)};
    return file.bytes() + std::string(100, '\0');
  };
  check_refused(with(raw(huge), 8), "is cut short inside metadata entry 1 of 1");
  for (const std::uint32_t type : {0U, 5U, 12U}) {
    check_refused(with(raw(type) + raw(huge), 9),
                  "the metadata hold a list of 18446744073709551615 values, more than the file has room for "
                  "under 'key'");
    check_refused(with(raw(type) + raw(std::uint64_t{1} << 61), 9), "more than the file has room for");
  }
  check_refused(with(raw(std::uint32_t{6}) + raw(std::uint64_t{40}), 9),
                "is cut short inside metadata entry 1 of 1: it takes 160 bytes");
  check_refused(with(raw(std::uint32_t{8}) + raw(huge), 9), "is cut short inside metadata entry 1 of 1");
}

TEST_CASE("metadata that are not what they should be") {
  gguf_bytes file;
  const auto refuse = [&](std::vector<std::string> metadata, const std::string& reason) {
    file.metadata = std::move(metadata);
    check_refused(file.bytes(), reason);
  };
  refuse({entry("a\nkey", 13, "")}, "the metadata hold a value of unknown type 13 under 'a\\x0akey'");
  refuse({entry("key", 4000000000, "")}, "a value of unknown type 4000000000");
  refuse({entry("key", 9, raw(std::uint32_t{13}) + raw(std::uint64_t{0}))},
         "a list of values of unknown type 13 under 'key'");
  refuse({entry("key", 9, raw(std::uint32_t{9}) + raw(std::uint64_t{0}))},
         "the metadata hold a list of lists under 'key'");
  refuse({entry("key", 0, "1"), entry("key", 0, "2")}, "the key 'key' appears twice in the metadata");
  for (const std::uint32_t alignment : {0U, 3U, 48U}) {
    refuse({entry("general.alignment", 4, raw(alignment))}, "its general.alignment is no power of two");
  }
  refuse({entry("general.alignment", 10, raw(std::uint64_t{1} << 62))},
         "its general.alignment is no power of two");
  refuse({entry("general.alignment", 8, raw_text("32"))}, "its general.alignment is no power of two");
}

TEST_CASE("tensors that are not what they should be") {
  gguf_bytes file;
  file.data = std::string(1000, 'x');
  const auto refuse = [&](std::vector<std::string> tensors, const std::string& reason) {
    file.tensors = std::move(tensors);
    check_refused(file.bytes(), reason);
  };
  const std::uint64_t huge = std::uint64_t{1} << 62;
  refuse({tensor_entry("x", {1, 1, 1, 1, 1}, 0, 0)}, "tensor 'x': has 5 axes, more than 4");
  refuse({tensor_entry("x", {2, 0}, 0, 0)}, "tensor 'x': an extent of 0");
  refuse({tensor_entry("x", {~std::uint64_t{0}}, 0, 0)}, "tensor 'x': an extent of -1");
  refuse({tensor_entry("x", {1}, 4, 0)}, "tensor 'x': is of ggml type 4, which is not known");
  refuse({tensor_entry("x", {1}, 4000000000, 0)}, "is of ggml type 4000000000, which is not known");
  refuse({tensor_entry("x", {255}, 12, 0)}, "tensor 'x': [255] Q4_K: its rows do not fill blocks of 256");
  refuse({tensor_entry("x", {16, 2}, 8, 0)}, "tensor 'x': [2, 16] Q8_0: its rows do not fill blocks of 32");
  refuse({tensor_entry("x", {}, 8, 0)}, "tensor 'x': [] Q8_0: its rows do not fill blocks of 32");
  refuse({tensor_entry("x", {huge}, 0, 0)}, "tensor 'x': its size overflows: [4611686018427387904] F32");
  refuse({tensor_entry("x", {1, huge, 4}, 0, 0)}, "its size overflows: [4, 4611686018427387904, 1] F32");
  refuse({tensor_entry("x", {huge, 2}, 24, 0)}, "its size overflows");
  refuse({tensor_entry("x", {huge}, 24, 0)}, "is cut short: it takes 4611686018427387904 bytes at 0");
  refuse({tensor_entry("x", {1}, 0, 16)}, "tensor 'x': its bytes start at 16, no multiple of 32");
  refuse({tensor_entry("x", {1}, 0, 1024)},
         "tensor 'x': is cut short: it takes 4 bytes at 1024 of the data, which have 1000");
  refuse({tensor_entry("x", {2}, 0, ~std::uint64_t{31})}, "tensor 'x': is cut short");
  refuse({tensor_entry("x", {251}, 0, 0)}, "is cut short: it takes 1004 bytes at 0");
  refuse({tensor_entry("a", {9}, 0, 0), tensor_entry("x", {1}, 0, 32)},
         "tensor 'x': its bytes start at 32, inside the tensor before it, which ends at 36");
  refuse({tensor_entry("a", {1}, 0, 0), tensor_entry("x", {1}, 0, 0)},
         "tensor 'x': its bytes start at 0, inside");
  refuse({tensor_entry("x", {1}, 0, 0), tensor_entry("y", {1}, 0, 64), tensor_entry("x", {1}, 0, 32)},
         "tensor 'x': appears twice");
}

TEST_CASE("bytes turned over and ends cut off: a file that can be read, or a file_error") {
  test_support::random_source random(31);
  const std::string whole = sample().bytes();
  const auto header = static_cast<index_t>(sample().header().size());
  int readable = 0;
  for (int round = 0; round < 1500; ++round) {
    std::string bytes = whole;
    for (index_t flips = random.integer(1, 3); flips > 0; --flips) {
      bytes[static_cast<std::size_t>(random.integer(0, header - 1))] ^=
          static_cast<char>(1 << random.integer(0, 7));
    }
    if (random.integer(0, 3) == 0) bytes.resize(static_cast<std::size_t>(random.integer(0, header + 140)));
    const auto path = scratch() / "turned.gguf";
    write_bytes(path, bytes);
    (void)message_of([&] {
      const gguf_file file(path);
      unsigned sum = 0;
      for (const auto& tensor : file.tensors()) {
        for (const std::byte b : tensor.bytes()) sum += static_cast<unsigned>(b);
        CHECK(file.find(tensor.name()) == &tensor);
      }
      [[maybe_unused]] volatile unsigned sink = sum;
      ++readable;
    });
  }
  CHECK(readable > 10);
  CHECK(readable < 1490);
}

TEST_CASE("the parts of a series, by their names") {
  const temporary_folder folder;
  const auto name = [&](int part, int count) {
    return folder / ("m-0000" + std::to_string(part) + "-of-0000" + std::to_string(count) + ".gguf");
  };
  for (int part = 1; part <= 3; ++part) write_bytes(name(part, 3), "");
  const std::vector<std::filesystem::path> all{name(1, 3), name(2, 3), name(3, 3)};
  CHECK(gguf_parts(name(1, 3)) == all);
  CHECK(gguf_parts(name(2, 3)) == all);
  for (const char* alone :
       {"model.gguf", "m-00001-of-00003.safetensors", "-00001-of-00003.gguf", "m-0001-of-00003.gguf",
        "m-00001-of-0000x.gguf", "m_00001-of-00003.gguf", "00001-of-00003.gguf"}) {
    CAPTURE(alone);
    CHECK(gguf_parts(alone) == std::vector<std::filesystem::path>{alone});
  }
  std::filesystem::remove(name(2, 3));
  CHECK(contains(message_of([&] { (void)gguf_parts(name(3, 3)); }),
                 name(2, 3).string() + ": is missing: part 2 of 3 of 'm'"));
  CHECK(contains(message_of([&] { (void)gguf_parts(name(4, 3)); }), "is part 4 of 3 by its name"));
  CHECK(contains(message_of([&] { (void)gguf_parts(name(0, 3)); }), "is part 0 of 3 by its name"));
  CHECK(contains(message_of([&] { (void)gguf_parts("m-00001-of-99999.gguf"); }),
                 "m-00001-of-99999.gguf: is missing"));
}

TEST_CASE("the parts of a series, by what they say of themselves") {
  const temporary_folder folder;
  const auto part = [&](int number, int count, int promised, const std::string& tensor) {
    gguf_bytes file;
    file.metadata = {entry("split.no", 2, raw(static_cast<std::uint16_t>(number))),
                     entry("split.count", 2, raw(static_cast<std::uint16_t>(count))),
                     entry("split.tensors.count", 5, raw(promised))};
    file.tensors = {tensor_entry(tensor, {1}, 0, 0)};
    file.data = "1234";
    const auto path = folder / (tensor + std::to_string(number) + ".gguf");
    write_bytes(path, file.bytes());
    return gguf_file(path);
  };
  const auto refusal_of = [](const std::vector<gguf_file>& files) {
    return message_of([&] { check_series(files); });
  };
  const auto series = [](auto... files) {
    std::vector<gguf_file> out;
    (out.push_back(std::move(files)), ...);
    return out;
  };
  CHECK(refusal_of({}) == "");
  CHECK(refusal_of(series(part(0, 2, 2, "a"), part(1, 2, 2, "b"))) == "");
  CHECK(refusal_of(series(part(0, 1, 1, "a"))) == "");
  CHECK(refusal_of(series(part(0, 0, 1, "a"))) == "");
  CHECK(refusal_of(series(opened(sample()))) == "");
  CHECK(contains(refusal_of(series(part(1, 2, 2, "b"), part(0, 2, 2, "a"))),
                 "b1.gguf: is part 2 of 2 by its metadata, but was found as part 1 of 2"));
  CHECK(contains(refusal_of(series(part(0, 3, 2, "a"), part(1, 3, 2, "b"))),
                 "a0.gguf: is part 1 of 3 by its metadata, but was found as part 1 of 2"));
  CHECK(contains(refusal_of(series(part(0, 2, 1, "a"))), "a0.gguf: is part 1 of 2 by its metadata"));
  CHECK(contains(refusal_of(series(part(0, 2, 3, "a"), part(1, 2, 3, "b"))),
                 "a0.gguf: is part of a series of 3 tensors, but they hold 2"));
  CHECK(contains(refusal_of(series(part(0, 2, 2, "a"), part(1, 2, 2, "a"))),
                 "a1.gguf: tensor 'a': is in a0.gguf too"));
  CHECK(contains(refusal_of(series(opened(sample()), part(1, 2, 4, "z"))), "good.gguf: is part 1 of 1"));
}

}  // namespace test_gguf
