// Every kind of damage is refused with one line that names the file and, where there is one, the tensor.
#include "files.hpp"

#include <algorithm>

namespace test_malformed {
using namespace mpi_router;
using namespace io_test;

namespace {

const temporary_folder& scratch() {
  static const temporary_folder folder;
  return folder;
}

std::string refusal(const std::string& bytes) {
  return refusal_of<safetensors_file>(scratch() / "bad.safetensors", bytes);
}

std::string header_refusal(const std::string& header, const std::string& data = "") {
  return refusal(raw_file(header, data));
}

/// One tensor "x" with these fields, over eight bytes of data.
std::string entry_refusal(const std::string& fields) {
  return header_refusal("{\"x\":{" + fields + "}}", "12345678");
}

void check_refused(const std::string& message, const std::string& reason) {
  CAPTURE(message);
  CHECK(contains(message, reason));
}
void check_tensor_refused(const std::string& message, const std::string& reason) {
  check_refused(message, reason);
  CHECK(contains(message, "'x'"));
}

}  // namespace

TEST_CASE("the file that all damage starts from is valid") {
  CHECK(entry_refusal(R"("dtype":"F32","shape":[2],"data_offsets":[0,8])") == "");
  CHECK(header_refusal("{}") == "");
  CHECK(header_refusal("{}   \n") == "");
  CHECK(header_refusal(R"({"__metadata__":{"a":"b","":""}})") == "");
  CHECK(header_refusal(R"({"b":{"dtype":"U8","shape":[1],"data_offsets":[1,2]},)"
                       R"("a":{"dtype":"U8","shape":[],"data_offsets":[0,1]}})",
                       "12") == "");
  CHECK(header_refusal(R"({"":{"dtype":"U8","shape":[0],"data_offsets":[0,0]},)"
                       R"("a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},)"
                       R"("z":{"dtype":"F64","shape":[3,0],"data_offsets":[1,1]}})",
                       "1") == "");
}

TEST_CASE("what safetensors' own library accepts is accepted") {
  const std::string x = R"("x":{"dtype":"F32","shape":[2],"data_offsets":[0,8]})";
  const auto accepted = [](const std::string& header, const std::string& data = "12345678") {
    CAPTURE(header);
    CHECK(header_refusal(header, data) == "");
  };
  accepted(" \t\r\n{" + x + "} \t\r\n");
  accepted(R"({"__metadata__":null,)" + x + "}");
  accepted(R"({"a\u0000b":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}})");
  for (const std::string& more :
       {std::string("1"), std::string("null"), std::string("\"text\""), std::string("-1e-400"),
        std::string("123456789012345678901234567890"), std::string(R"([[1],{"shape":[3],"dtype":null}])"),
        std::string(R"({"dtype":"F64","data_offsets":[0,"x"]})"),
        std::string(125, '[') + std::string(125, ']')}) {
    accepted(R"({"x":{"more":)" + more + R"(,"dtype":"F32","shape":[2],"data_offsets":[0,8]}})");
    accepted(R"({"x":{"dtype":"F32","shape":[2],"data_offsets":[0,8],"more":)" + more + "}}");
  }
  accepted("{" + x + R"(,"a":{"dtype":"U8","shape":[0],"data_offsets":[8,8]}})");
  accepted("{" + x + R"(,"z":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}})");
  accepted(R"({"x":{"dtype":"F4","shape":[3,0],"data_offsets":[0,0]}})", "");
  accepted(R"({"x":{"dtype":"F32","shape":[9223372036854775807,0],"data_offsets":[0,0]}})", "");
  accepted(R"({"x":{"dtype":"F6_E2M3","shape":[4],"data_offsets":[0,3]}})", "123");
  accepted(R"({"x":{"dtype":"F6_E3M2","shape":[4],"data_offsets":[0,3]}})", "123");
  for (const char* type : {"F8_E8M0", "F8_E4M3", "F8_E5M2", "F8_E4M3FNUZ", "F8_E5M2FNUZ", "BOOL"}) {
    accepted(R"({"x":{"dtype":")" + std::string(type) + R"(","shape":[8],"data_offsets":[0,8]}})");
  }
  accepted(R"({"x":{"dtype":"C64","shape":[1],"data_offsets":[0,8]}})");
}

TEST_CASE("and what it refuses is refused") {
  const std::string x = R"("x":{"dtype":"F32","shape":[2],"data_offsets":[0,8]})";
  check_refused(header_refusal(R"({"__metadata__":{"a":null},)" + x + "}", "12345678"),
                "the metadata holds a value where only text may be");
  check_refused(header_refusal(R"({"__metadata__":false,)" + x + "}", "12345678"),
                "the metadata holds a value");
  check_refused(header_refusal(R"({"x":{"more":)" + std::string(126, '[')), "nested deeper than 127 levels");
  check_tensor_refused(
      entry_refusal(R"("more":{"a":1,"a":2},"dtype":"F32","shape":[2],"data_offsets":[0,8])"),
      "the key 'a' appears twice in 'x' / 'more'");
  check_tensor_refused(
      entry_refusal(R"("dtype":"U8","shape":[9223372036854775807,4,0],"data_offsets":[0,0])"), "overflows");
  check_refused(
      header_refusal("{" + x + R"(,"a":{"dtype":"U8","shape":[0],"data_offsets":[4,4]}})", "12345678"),
      "tensor 'a': its bytes start at 4, inside the tensor before it, which ends at 8");
}

TEST_CASE("what is not there or is no file") {
  check_refused(message_of([] { safetensors_file file(scratch() / "missing"); }),
                "missing: cannot be opened");
  check_refused(message_of([] { safetensors_file file(scratch().path()); }), "is not a regular file");
#ifndef _WIN32
  std::filesystem::create_symlink("nowhere", scratch() / "link");
  check_refused(message_of([] { safetensors_file file(scratch() / "link"); }),
                "link: is a symbolic link, and cannot be opened: No such file");
  check_refused(message_of([] { safetensors_file file("/dev/null"); }), "/dev/null: is not a regular file");
#endif
}

TEST_CASE("a header that is cut short, too long or no JSON") {
  check_refused(refusal(std::string("\x02\0\0\0\0\0\0", 7)), "is too short for a safetensors file: 7 bytes");
  check_refused(refusal(std::string("\x02\0\0\0\0\0\0\0", 8)),
                "is cut short: its header has 2 bytes, the file 8");
  check_refused(refusal(std::string("\0\0\0\0\0\0\0\0{}", 10)), "does not start with '{'");
  check_refused(refusal(std::string("\0\0\0\0\0\0\0\0x", 9)), "does not start with '{'");
  check_refused(refusal(std::string("\x03\0\0\0\0\0\0\0{}", 10)), "is cut short: its header has 3 bytes");
  check_refused(refusal(std::string(8, '\xff') + "{}"), "18446744073709551615 bytes, more than 100000000");
  check_refused(refusal(std::string("\x01\xe1\xf5\x05\0\0\0\0{}", 10)), "100000001 bytes, more than");
  check_refused(refusal(std::string("\0\xe1\xf5\x05\0\0\0\0{}", 10)), "is cut short");
  for (const char* header : {"[]", "3", "null", "\"x\"", "  ", "\f{}", "\xef\xbb\xbf{}", "x"}) {
    check_refused(header_refusal(header), "does not start with '{'");
  }
  for (const char* header :
       {"{", "{}}", "{} x", "{\"x\"}", "{\"x\":}", "{'x':1}", "{\"x\":{},}", "{/**/}", "{\"a\xff\":{}}",
        "{\"\xc0\x80\":{}}", "{\"\\ud800\":{}}", "{\"x", "{\"x\":1e999}"}) {
    check_refused(header_refusal(header), "no valid JSON at byte");
    CHECK_FALSE(contains(header_refusal(header), "json.exception"));
  }
  check_refused(header_refusal(std::string("{}\0{}", 5)), "contains a NUL byte");
  check_refused(header_refusal(std::string("{}\0", 3)), "contains a NUL byte");
}

TEST_CASE("a header of another shape") {
  check_tensor_refused(header_refusal(R"({"x":3})"), "a value in place of its entry");
  check_tensor_refused(header_refusal(R"({"x":null})"), "a value in place of its entry");
  check_tensor_refused(header_refusal(R"({"x":"F32"})"), "text in place of its entry");
  check_tensor_refused(header_refusal(R"({"x":[]})"), "a list in place of its entry");
  check_tensor_refused(entry_refusal(R"("dtype":"F32","shape":[[2]],"data_offsets":[0,8])"),
                       "a list under 'shape'");
  check_tensor_refused(entry_refusal(R"("dtype":"F32","shape":[{}],"data_offsets":[0,8])"),
                       "an object under 'shape'");
  check_tensor_refused(entry_refusal(R"("dtype":["F32"],"shape":[2],"data_offsets":[0,8])"), "under 'dtype'");
  check_tensor_refused(entry_refusal(R"("dtype":{},"shape":[2],"data_offsets":[0,8])"), "under 'dtype'");
  std::string deep = "{\"x\":";
  deep.append(100000, '[');
  check_tensor_refused(header_refusal(deep), "a list in place of its entry");
  check_refused(header_refusal(R"({"__metadata__":{"a":1}})"),
                "the metadata holds a value where only text may be");
  check_refused(header_refusal(R"({"__metadata__":{"a":{}}})"), "the metadata holds an object");
  check_refused(header_refusal(R"({"__metadata__":[]})"), "the metadata holds a list");
  check_refused(header_refusal(R"({"__metadata__":"a"})"), "the metadata holds text");
}

TEST_CASE("duplicate keys, at every level") {
  const std::string x = R"("x":{"dtype":"F32","shape":[2],"data_offsets":[0,8]})";
  check_tensor_refused(header_refusal("{" + x + "," + x + "}", "12345678"), "the key 'x' appears twice");
  check_refused(
      header_refusal("{" + x + R"(,"\u0078":{"dtype":"U8","shape":[0],"data_offsets":[8,8]}})", "12345678"),
      "the key 'x' appears twice");
  check_tensor_refused(entry_refusal(R"("dtype":"F32","dtype":"F32","shape":[2],"data_offsets":[0,8])"),
                       "the key 'dtype' appears twice in 'x'");
  check_tensor_refused(entry_refusal(R"("dtype":"F32","shape":[2],"shape":[2],"data_offsets":[0,8])"),
                       "the key 'shape' appears twice in 'x'");
  check_tensor_refused(
      entry_refusal(R"("dtype":"F32","shape":[2],"data_offsets":[0,8],"data_offsets":[0,8])"),
      "the key 'data_offsets' appears twice in 'x'");
  check_refused(header_refusal(R"({"__metadata__":{},"__metadata__":{}})"), "'__metadata__' appears twice");
  check_refused(header_refusal(R"({"__metadata__":{"a":"1","a":"2"}})"),
                "'a' appears twice in '__metadata__'");
  // Also where others lie between.
  check_refused(header_refusal(R"({"__metadata__":{"a":"1","b":"2","a":"3"}})"),
                "'a' appears twice in '__metadata__'");
  check_tensor_refused(entry_refusal(R"("dtype":"F32","shape":[2],"data_offsets":[0,8],"dtype":"F32")"),
                       "the key 'dtype' appears twice in 'x'");
}

TEST_CASE("names do not reach a terminal as they are") {
  // A message is one line whatever the name is.
  check_refused(header_refusal(R"({"a\u0000b":3})"), "tensor 'a\\x00b'");
  check_refused(header_refusal(R"({"a\nb\u001b[31m":3})"), "tensor 'a\\x0ab\\x1b[31m'");
}

TEST_CASE("text from files is printable UTF-8 in messages") {
  using io::printable;
  CHECK(printable("") == "");
  CHECK(printable("a b~ \xc2\xa0 \xc3\xbc \xe2\x82\xac \xf0\x9f\x99\x82") ==
        "a b~ \xc2\xa0 \xc3\xbc \xe2\x82\xac \xf0\x9f\x99\x82");
  CHECK(printable(std::string("\0\x1f\x7f", 3)) == "\\x00\\x1f\\x7f");
  CHECK(printable("\xc2\x9b"
                  "2J") ==
        "\\xc2\\x9b"
        "2J");
  for (const char* hidden :
       {"\xe2\x80\xa8", "\xe2\x80\xae", "\xe2\x80\x8e", "\xe2\x81\xa6", "\xe2\x81\xa9", "\xef\xbb\xbf"}) {
    CHECK(printable(hidden).starts_with("\\xe"));
  }
  for (const char* broken : {"\x80", "\xc1\xbf", "\xc3", "\xe2\x82", "\xe0\x9f\xbf", "\xed\xa0\x80",
                             "\xf0\x8f\xbf\xbf", "\xf4\x90\x80\x80", "\xf5\x80\x80\x80", "\xff"}) {
    const auto shown = printable(broken);
    CAPTURE(shown);
    CHECK(std::all_of(shown.begin(), shown.end(),
                      [](char c) { return static_cast<unsigned char>(c) < 0x80U; }));
  }
  CHECK(printable("\xe2\x82z") == "\\xe2\\x82z");
  CHECK(printable(std::string(200, 'x')) == std::string(200, 'x'));
  CHECK(printable(std::string(201, 'x')) == std::string(200, 'x') + "...");
  CHECK(printable("abc\xe2\x82\xac"
                  "d",
                  5) == "abc...");
  CHECK(printable("abc\xe2\x82\xac"
                  "d",
                  6) == "abc\xe2\x82\xac...");
  CHECK(printable("abc\xe2\x82\xac"
                  "d",
                  7) ==
        "abc\xe2\x82\xac"
        "d");
#ifndef _WIN32  // Names of files, too.
  const auto path = scratch() / "a\x1b\xff.safetensors";
  CHECK(contains(message_of([&] { safetensors_file file(path); }),
                 "/a\\x1b\\xff.safetensors: cannot be opened"));
#endif
}

TEST_CASE("entries that are incomplete") {
  check_tensor_refused(entry_refusal(""), "has no dtype");
  check_tensor_refused(entry_refusal(R"("shape":[2],"data_offsets":[0,8])"), "has no dtype");
  check_tensor_refused(entry_refusal(R"("dtype":"F32","data_offsets":[0,8])"), "has no shape");
  check_tensor_refused(entry_refusal(R"("dtype":"F32","shape":[2])"), "has no data_offsets of two numbers");
  check_tensor_refused(entry_refusal(R"("dtype":"F32","shape":[2],"data_offsets":[])"), "of two numbers");
  check_tensor_refused(entry_refusal(R"("dtype":"F32","shape":[2],"data_offsets":[0])"), "of two numbers");
  check_tensor_refused(entry_refusal(R"("dtype":"F32","shape":[2],"data_offsets":[0,8,8])"),
                       "of two numbers");
}

TEST_CASE("unknown dtypes") {
  for (const char* type : {"F128", "f32", "", "BF16 ", "FLOAT", "F8"}) {
    check_tensor_refused(
        entry_refusal("\"dtype\":\"" + std::string(type) + R"(","shape":[2],"data_offsets":[0,8])"),
        "unknown dtype '" + std::string(type) + "'");
  }
  check_tensor_refused(entry_refusal(R"("dtype":3,"shape":[2],"data_offsets":[0,8])"), "under 'dtype'");
}

TEST_CASE("dimensions and offsets that are no counts") {
  for (const char* number :
       {"-1", "-0", "2.0", "1e1", "1.5", "true", "null", "18446744073709551616", "-9223372036854775809"}) {
    check_tensor_refused(
        entry_refusal(R"("dtype":"F32","shape":[)" + std::string(number) + R"(],"data_offsets":[0,8])"),
        "no integer from 0 up under 'shape'");
    check_tensor_refused(
        entry_refusal(R"("dtype":"F32","shape":[2],"data_offsets":[0,)" + std::string(number) + "]"),
        "no integer from 0 up under 'data_offsets'");
  }
  check_tensor_refused(entry_refusal(R"("dtype":"F32","shape":["2"],"data_offsets":[0,8])"),
                       "text under 'shape'");
  check_tensor_refused(entry_refusal(R"("dtype":"F32","shape":2,"data_offsets":[0,8])"),
                       "a value under 'shape'");
  check_tensor_refused(entry_refusal(R"("dtype":"F32","shape":[9223372036854775808],"data_offsets":[0,8])"),
                       "the dimension 9223372036854775808 is too large");
}

TEST_CASE("sizes that overflow or disagree") {
  check_tensor_refused(entry_refusal(R"("dtype":"F32","shape":[4611686018427387904,4],"data_offsets":[0,8])"),
                       "overflows");
  check_tensor_refused(  // 2^63 · 2 elements wrap to zero
      entry_refusal(R"("dtype":"U8","shape":[4611686018427387904,4],"data_offsets":[0,0])"), "overflows");
  check_tensor_refused(  // 2^61 elements fit in 64 bits, their bytes do not
      entry_refusal(R"("dtype":"F64","shape":[2305843009213693952],"data_offsets":[0,0])"), "overflows");
  check_tensor_refused(entry_refusal(R"("dtype":"F4","shape":[3],"data_offsets":[0,8])"),
                       "no whole number of bytes");
  check_tensor_refused(entry_refusal(R"("dtype":"F32","shape":[3],"data_offsets":[0,8])"),
                       "[3] F32 takes 12 bytes, its data_offsets hold 8");
  check_tensor_refused(entry_refusal(R"("dtype":"F32","shape":[1],"data_offsets":[0,8])"), "takes 4 bytes");
  check_tensor_refused(entry_refusal(R"("dtype":"F32","shape":[],"data_offsets":[0,8])"),
                       "[] F32 takes 4 bytes");
  check_tensor_refused(entry_refusal(R"("dtype":"F32","shape":[0],"data_offsets":[0,8])"), "takes 0 bytes");
  check_tensor_refused(entry_refusal(R"("dtype":"F64","shape":[2],"data_offsets":[0,8])"), "takes 16 bytes");
}

TEST_CASE("a message stays short, however many axes a tensor has") {
  std::string shape = "1";
  for (int i = 0; i < 100000; ++i) {
    shape += ",1";
  }
  for (const char* type : {"F32", "F64", "F4"}) {
    const auto message = entry_refusal(R"("dtype":")" + std::string(type) + R"(","shape":[)" + shape +
                                       R"(,5],"data_offsets":[0,8])");
    check_tensor_refused(message, "[1, 1, 1, 1, 1, 1, 1, 1, ...]");
    CHECK(message.size() < 1000);
  }
}

TEST_CASE("offsets that point elsewhere") {
  check_tensor_refused(entry_refusal(R"("dtype":"F32","shape":[2],"data_offsets":[8,0])"),
                       "end before they begin");
  check_tensor_refused(entry_refusal(R"("dtype":"F32","shape":[2],"data_offsets":[8,7])"),
                       "[8, 7] end before they begin");
  check_tensor_refused(entry_refusal(R"("dtype":"U8","shape":[9],"data_offsets":[0,9])"),
                       "[0, 9] reach past the file");
  check_tensor_refused(entry_refusal(R"("dtype":"F32","shape":[4],"data_offsets":[0,16])"),
                       "reach past the file, which holds 8 bytes of data: it is cut short");
  check_tensor_refused(
      entry_refusal(
          R"("dtype":"F32","shape":[2],"data_offsets":[18446744073709551608,18446744073709551615])"),
      "reach past the file");
  check_tensor_refused(entry_refusal(R"("dtype":"F32","shape":[1],"data_offsets":[4,8])"), "leave a gap");
  check_refused(entry_refusal(R"("dtype":"F32","shape":[1],"data_offsets":[0,4])"),
                "its tensors end at byte 4 of its data, which has 8");
  check_refused(header_refusal("{}", "x"), "its tensors end at byte 0 of its data, which has 1");

  const auto two = [](const std::string& first, const std::string& second) {
    return header_refusal(R"({"w":{"dtype":"U8","shape":[4],"data_offsets":)" + first +
                              R"(},"x":{"dtype":"U8","shape":[4],"data_offsets":)" + second + "}}",
                          "12345678");
  };
  CHECK(two("[0,4]", "[4,8]") == "");
  CHECK(two("[4,8]", "[0,4]") == "");
  check_tensor_refused(two("[0,4]", "[3,7]"), "inside the tensor before it");
  check_tensor_refused(two("[0,4]", "[0,4]"), "inside the tensor before it");
  check_tensor_refused(header_refusal(R"({"w":{"dtype":"U8","shape":[3],"data_offsets":[0,3]},)"
                                      R"("x":{"dtype":"U8","shape":[4],"data_offsets":[4,8]}})",
                                      "12345678"),
                       "leave a gap");
}

TEST_CASE("any one byte changed, and any end cut off: a file that reads, or a file_error") {
  const std::string good =
      raw_file(R"({"__metadata__":{"k":"v"},"ab":{"dtype":"BF16","shape":[2,2],"data_offsets":[0,8]},)"
               R"("c":{"dtype":"F4","shape":[2],"data_offsets":[8,9]}}  )",
               "123456789");
  REQUIRE(refusal(good) == "");
  std::size_t valid = 0;
  const auto attempt = [&](const std::string& bytes) {
    const auto path = scratch() / "mutant.safetensors";
    write_bytes(path, bytes);
    try {
      const safetensors_file file(path);
      ++valid;
      std::size_t end = 0;
      for (const auto& t : file.tensors()) {
        end += t.bytes().size();
        CHECK(file.find(t.name()) == &t);
        CHECK(detail::byte_size(t.type(), t.shape()) == t.bytes().size());
      }
      CHECK(file.header().size() + end == bytes.size());
    } catch (const file_error& error) {
      CHECK(contains(error.what(), path.string()));
    }
  };
  for (std::size_t i = 0; i < good.size(); ++i) {
    attempt(good.substr(0, i));
    attempt(good + good.substr(i));
    for (const int flip : {0x01, 0x02, 0x04, 0x08, 0x10, 0x20, 0x40, 0x80, 0xff}) {
      std::string bad = good;
      bad[i] = static_cast<char>(static_cast<unsigned char>(bad[i]) ^ flip);
      attempt(bad);
    }
    for (const char replacement : {'\0', '"', '{', '}', '[', ']', ',', '9', '-'}) {
      std::string bad = good;
      bad[i] = replacement;
      attempt(bad);
    }
  }
  CHECK(valid >= 9 * 9);  // at least every change of the data alone
}

}  // namespace test_malformed
