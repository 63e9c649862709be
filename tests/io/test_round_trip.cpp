// What is written is read back, bit for bit, for every type, and the bytes depend on nothing but the tensors.
#include "files.hpp"

#include <support/messages.hpp>
#include <support/random.hpp>

#include <algorithm>
#include <array>

namespace test_round_trip {
using namespace mpi_router;
using namespace io_test;

namespace {

std::vector<std::byte> random_bytes(test_support::random_source& random, std::size_t count) {
  std::vector<std::byte> out(count);
  for (auto& b : out) {
    b = static_cast<std::byte>(random.integer(0, 255));
  }
  return out;
}

template <class T>
bool same_bytes(const T* data, const std::vector<T>& expected) {
  return std::memcmp(data, expected.data(), expected.size() * sizeof(T)) == 0;
}

}  // namespace

TEST_CASE("the names and sizes of the types are those of the format") {
  struct entry {
    dtype type;
    std::string_view name;
    unsigned bits;
  };
  const std::array all{entry{dtype::boolean, "BOOL", 8},    entry{dtype::f4, "F4", 4},
                       entry{dtype::f6_e2m3, "F6_E2M3", 6}, entry{dtype::f6_e3m2, "F6_E3M2", 6},
                       entry{dtype::f8_e4m3, "F8_E4M3", 8}, entry{dtype::f8_e4m3fnuz, "F8_E4M3FNUZ", 8},
                       entry{dtype::f8_e5m2, "F8_E5M2", 8}, entry{dtype::f8_e5m2fnuz, "F8_E5M2FNUZ", 8},
                       entry{dtype::f8_e8m0, "F8_E8M0", 8}, entry{dtype::i8, "I8", 8},
                       entry{dtype::i16, "I16", 16},        entry{dtype::i32, "I32", 32},
                       entry{dtype::i64, "I64", 64},        entry{dtype::u8, "U8", 8},
                       entry{dtype::u16, "U16", 16},        entry{dtype::u32, "U32", 32},
                       entry{dtype::u64, "U64", 64},        entry{dtype::f16, "F16", 16},
                       entry{dtype::bf16, "BF16", 16},      entry{dtype::f32, "F32", 32},
                       entry{dtype::f64, "F64", 64},        entry{dtype::c64, "C64", 64}};
  CHECK(all.size() == io::dtype_table.size());
  for (const auto& [type, name, bits] : all) {
    CAPTURE(name);
    CHECK(to_string(type) == name);
    CHECK(dtype_from_string(name) == type);
    CHECK(bits_of(type) == bits);
  }
  CHECK(test_support::refused([] { static_cast<void>(bits_of(static_cast<dtype>(io::dtype_table.size()))); },
                              "dtype"));
  CHECK_FALSE(dtype_from_string("f32").has_value());
  CHECK_FALSE(dtype_from_string("F128").has_value());
  CHECK_FALSE(dtype_from_string("").has_value());
}

TEST_CASE("every type and shape survives a round trip") {
  const temporary_folder folder;
  test_support::random_source random(1);
  const std::vector<std::vector<index_t>> shapes{{},
                                                 {0},
                                                 {8},
                                                 {3, 8},
                                                 {2, 0, 5},
                                                 {1, 1, 1, 8},
                                                 {1, 1, 1, 1, 1, 1, 1, 1, 2, 4},
                                                 {0, 1LL << 62, 1LL << 62}};
  std::vector<std::vector<std::byte>> memory;
  std::vector<tensor_source> sources;
  for (unsigned i = 0; i < io::dtype_table.size(); ++i) {
    for (std::size_t s = 0; s < shapes.size(); ++s) {
      const auto size = detail::byte_size(static_cast<dtype>(i), shapes[s]);
      if (!size) {
        CHECK(bits_of(static_cast<dtype>(i)) % 8 != 0);  // half a byte is no tensor
        continue;
      }
      memory.push_back(random_bytes(random, *size));
      sources.push_back(
          {std::to_string(i) + "." + std::to_string(s), static_cast<dtype>(i), shapes[s], memory.back()});
    }
  }
  const std::map<std::string, std::string> metadata{
      {"format", "pt"}, {"", "empty key"}, {"Ω \"quoted\"\n", "\\ \x01 ünïcode \xf0\x9f\x99\x82"}};
  write_safetensors(folder / "a.safetensors", sources, metadata);

  const safetensors_file file(folder / "a.safetensors");
  CHECK(file.metadata() == metadata);
  CHECK(file.header().size() % 8 == 0);
  REQUIRE(file.tensors().size() == sources.size());
  for (const auto& source : sources) {
    const auto& read = file.at(source.name);
    CHECK(read.type() == source.type);
    CHECK(std::ranges::equal(read.shape(), source.shape));
    CHECK(std::ranges::equal(read.bytes(), source.bytes));
    if (bits_of(read.type()) >= 8) {  // the smaller ones are packed and have no alignment
      CHECK((reinterpret_cast<std::uintptr_t>(read.bytes().data()) % (bits_of(read.type()) / 8) == 0 ||
             read.bytes().empty()));
    }
  }

  SUBCASE("the bytes do not depend on the order of the tensors") {
    std::reverse(sources.begin(), sources.end());
    write_safetensors(folder / "b.safetensors", sources, metadata);
    CHECK(read_bytes(folder / "a.safetensors") == read_bytes(folder / "b.safetensors"));
  }
  SUBCASE("a copy of a file that this library wrote is the same file") {
    std::vector<tensor_source> copies;
    for (const auto& t : file.tensors()) {
      copies.push_back(make_tensor_source(t));
    }
    write_safetensors(folder / "b.safetensors", copies, file.metadata());
    CHECK(read_bytes(folder / "a.safetensors") == read_bytes(folder / "b.safetensors"));
  }
}

TEST_CASE("an empty file of tensors is a file") {
  const temporary_folder folder;
  write_safetensors(folder / "empty.safetensors", {});
  const safetensors_file file(folder / "empty.safetensors");
  CHECK(file.tensors().empty());
  CHECK(file.metadata().empty());
  CHECK(file.find("x") == nullptr);
  CHECK(message_of([&] { static_cast<void>(file.at("x")); }) ==
        (folder / "empty.safetensors").string() + ": has no tensor 'x'");
}

TEST_CASE_TEMPLATE("typed elements come back as they went", T, double, float, bf16, f16, std::int8_t,
                   std::int16_t, std::int32_t, std::int64_t, std::uint8_t, std::uint16_t, std::uint32_t,
                   std::uint64_t) {
  const temporary_folder folder;
  test_support::random_source random(2);
  std::vector<T> elements(15);
  const auto bytes = random_bytes(random, elements.size() * sizeof(T));
  std::memcpy(elements.data(), bytes.data(), bytes.size());
  const std::vector<tensor_source> sources{make_tensor_source<T>("x", {3, 5}, elements)};
  write_safetensors(folder / "a.safetensors", sources);

  SUBCASE("in place, where the file aligns them") {
    const safetensors_file file(folder / "a.safetensors");
    const auto& x = file.at("x");
    const auto loaded = x.template load<T>();
    CHECK(loaded.data() == x.template data<T>());
    CHECK_FALSE(loaded.is_copy());
    CHECK(same_bytes(loaded.data(), elements));
  }
  SUBCASE("as what the format calls their type") {
    const std::string bits = std::to_string(8 * sizeof(T));
    const std::string name = std::is_same_v<T, bf16>  ? "BF16"
                             : !std::is_integral_v<T> ? "F" + bits
                             : std::is_unsigned_v<T>  ? "U" + bits
                                                      : "I" + bits;
    CHECK(contains(read_bytes(folder / "a.safetensors"), R"("dtype":")" + name + "\""));
  }
  SUBCASE("by a copy, where it does not") {
    const std::string header = R"({"x":{"dtype":")" + std::string(to_string(dtype_of<T>::value)) +
                               R"(","shape":[3,5],"data_offsets":[0,)" + std::to_string(bytes.size()) + "]}}";
    std::size_t past = 1;  // a multiple of 8 the data begin
    SUBCASE("an odd address") {}
    SUBCASE("a multiple of 2") { past = 2; }
    SUBCASE("a multiple of 4") { past = 4; }
    const std::string padding((16 - header.size() % 8 + past) % 8, ' ');
    write_bytes(folder / "odd.safetensors",
                raw_file(header + padding, {reinterpret_cast<const char*>(bytes.data()), bytes.size()}));
    const safetensors_file file(folder / "odd.safetensors");
    const auto& x = file.at("x");
    auto loaded = x.template load<T>();
    CHECK(loaded.is_copy() == (sizeof(T) > past));
    const auto* const before = loaded.data();
    const auto moved = std::move(loaded);
    CHECK(moved.data() == before);
    REQUIRE(moved.size() == elements.size());
    CHECK(same_bytes(moved.data(), elements));
    if (sizeof(T) > past) {
      const auto message = message_of([&] { static_cast<void>(x.template data<T>()); });
      CHECK(contains(message, "odd.safetensors: tensor 'x'"));
      CHECK(contains(message, "load() copies"));
    }
  }
  SUBCASE("and not as another type") {
    using other = std::conditional_t<std::is_same_v<T, float>, double, float>;
    const safetensors_file file(folder / "a.safetensors");
    CHECK(contains(message_of([&] { static_cast<void>(file.at("x").template load<other>()); }),
                   "asked for as"));
  }
}

TEST_CASE("tensors keep their place when the file object moves") {
  const temporary_folder folder;
  const std::vector<float> elements(6, 1.5F);
  const std::vector<tensor_source> sources{make_tensor_source<float>("x", {6}, elements)};
  write_safetensors(folder / "a.safetensors", sources);
  safetensors_file file(folder / "a.safetensors");
  const auto* const tensor = file.find("x");
  const safetensors_file moved = std::move(file);
  CHECK(moved.find("x") == tensor);
  CHECK(moved.find("w") == nullptr);
  CHECK(tensor->file() == folder / "a.safetensors");
  CHECK(tensor->data<float>()[5] == 1.5F);
}

TEST_CASE("a header is padded to the next multiple of 8, and no further") {
  const temporary_folder folder;
  for (std::size_t more = 0; more < 8; ++more) {
    write_safetensors(folder / "a", {}, {{"key", std::string(more, 'x')}});
    const std::size_t length = std::string(R"({"__metadata__":{"key":""}})").size() + more;
    CHECK(read_bytes(folder / "a").size() == 8 + (length + 7) / 8 * 8);
  }
}

TEST_CASE("a map that is assigned takes bytes and path, and gives its own back") {
  const temporary_folder folder;
  write_bytes(folder / "a", "aaa");
  write_bytes(folder / "b", "b");
  mapped_file a(folder / "a");
  a = mapped_file(folder / "b");
  CHECK(a.path() == folder / "b");
  CHECK(a.bytes().size() == 1);
  CHECK(a.bytes()[0] == std::byte{'b'});
  const mapped_file moved = std::move(a);
  CHECK(moved.bytes().size() == 1);
}

TEST_CASE("the writer refuses what would be no file") {
  const temporary_folder folder;
  const std::vector<float> elements(6);
  const auto target = folder / "a.safetensors";
  const auto write = [&](std::string name, std::vector<index_t> shape) {
    const std::vector<tensor_source> sources{
        make_tensor_source<float>(std::move(name), std::move(shape), elements)};
    write_safetensors(target, sources);
  };
  using test_support::refused;
  CHECK(refused([&] { write("x", {7}); }, "write_safetensors: tensor 'x' [7] F32 with 24 bytes"));
  CHECK(refused([&] { write("x", {5}); }, "tensor 'x' [5] F32 with 24 bytes"));
  CHECK(refused([&] { write("x", {-6}); }, "tensor 'x' [-6] F32"));
  CHECK(refused([&] { write("x", {1LL << 62, 1LL << 62}); }, "tensor 'x' ["));
  const std::vector<tensor_source> negative{{"x", dtype::f32, {0, -6}, {}}};
  CHECK(refused([&] { write_safetensors(target, negative); }, "tensor 'x' [0, -6] F32 with 0 bytes"));
  CHECK(refused([&] { write("__metadata__", {6}); }, "no tensor may be called '__metadata__'"));
  CHECK(refused([&] { write(std::string("a\0b", 3), {6}); }, "no tensor may be called 'a\\x00b'"));
  CHECK(refused([&] { write("\xff\xfe", {6}); }, "'\\xff\\xfe' is not UTF-8"));
  const std::vector<tensor_source> twice{make_tensor_source<float>("x", {6}, elements),
                                         make_tensor_source<float>("x", {6}, elements)};
  CHECK(refused([&] { write_safetensors(target, twice); }, "two tensors are called 'x'"));
  CHECK(refused([&] { write_safetensors(target, {}, {{"key", "\xff"}}); }, "'\\xff' is not UTF-8"));
  CHECK(refused([&] { write_safetensors(target, {}, {{"\xff", "value"}}); }, "'\\xff' is not UTF-8"));
#if !defined(MPIROUTER_TEST_SHORT)  // a hundred megabytes of JSON
  // No reader would take a longer header: {"__metadata__":{"key":"x…"}}, padded to a multiple of 8.
  const auto with_header_of = [&](std::size_t bytes) {
    write_safetensors(target, {}, {{"key", std::string(bytes - 27, 'x')}});
  };
  CHECK(refused([&] { with_header_of(safetensors_file::longest_header + 1); },
                "the header would have 100000008 bytes, more than 100000000"));
#endif
  CHECK(folder.entries() == 0);
}

TEST_CASE("a file is never written over itself, by whatever name") {
  namespace fs = std::filesystem;
  const temporary_folder folder;
  const std::vector<float> elements(6, 2.0F);
  const std::vector<tensor_source> sources{make_tensor_source<float>("x", {6}, elements)};
  write_safetensors(folder / "a.safetensors", sources);
  link_to("a.safetensors", folder / "link.safetensors");
  fs::create_hard_link(folder / "a.safetensors", folder / "hard.safetensors");
  fs::create_directory(folder / "sub");
  const auto before = read_bytes(folder / "a.safetensors");
  const safetensors_file file(folder / "a.safetensors");
  const std::vector<tensor_source> copies{make_tensor_source(file.at("x"))};
  for (const char* name : {"a.safetensors", "link.safetensors", "hard.safetensors", "sub/../a.safetensors"}) {
    CHECK(test_support::refused([&] { write_safetensors(folder / name, copies); },
                                "is the file that tensor 'x' comes from"));
  }
  CHECK(read_bytes(folder / "a.safetensors") == before);
  CHECK(folder.entries() == 4);
  // Whichever of the tensors comes from it.
  auto both = copies;
  both.push_back(make_tensor_source<float>("y", {6}, elements));
  write_safetensors(folder / "b.safetensors", both);
  const safetensors_file other(folder / "b.safetensors");
  both = {copies[0], make_tensor_source(other.at("y"))};
  CHECK(test_support::refused([&] { write_safetensors(folder / "b.safetensors", both); },
                              "is the file that tensor 'y' comes from"));
}

TEST_CASE("a file appears whole or not at all") {
  namespace fs = std::filesystem;
  const temporary_folder folder;
  SUBCASE("nothing before commit, and nothing left without it") {
    write_bytes(folder / "out", "old");
    {
      atomic_file file(folder / "out");
      file.write("new");
      CHECK(read_bytes(folder / "out") == "old");
      CHECK(folder.entries() == 2);
    }
    CHECK(read_bytes(folder / "out") == "old");
    CHECK(folder.entries() == 1);
    atomic_file file(folder / "out");
    file.write("new");
    file.commit();
    CHECK(read_bytes(folder / "out") == "new");
    CHECK(folder.entries() == 1);
  }
  SUBCASE("what is a folder, or in one that is not there, is refused by name") {
    fs::create_directory(folder / "d");
    CHECK(contains(message_of([&] { atomic_file(folder / "d"); }), "d: is a folder"));
    CHECK(contains(message_of([&] { atomic_file(folder / "missing/x"); }), "x: cannot be written"));
  }
  SUBCASE("a mapped file is replaced and its map stays, but on Windows, which says so") {
    write_bytes(folder / "out", "old");
    const mapped_file held(folder / "out");
    {
      atomic_file file(folder / "out");
      file.write("new");
      const auto said = message_of([&] { file.commit(); });
#ifdef _WIN32
      CHECK(contains(said, "out: cannot be put in place: "));
      CHECK(contains(said, "; Windows replaces no file that is mapped, or open elsewhere"));
#else
      CHECK(said.empty());
      CHECK(read_bytes(folder / "out") == "new");
#endif
    }
    CHECK(static_cast<char>(held.bytes()[0]) == 'o');
    CHECK(folder.entries() == 1);
  }
#ifndef _WIN32
  SUBCASE("a symbolic link stays, what it names is replaced") {
    write_bytes(folder / "real", "old");
    fs::create_symlink("real", folder / "link");
    atomic_file file(folder / "link");
    file.write("new");
    file.commit();
    CHECK(fs::is_symlink(folder / "link"));
    CHECK(read_bytes(folder / "real") == "new");
  }
  SUBCASE("what is no file, and whose name cannot be one, is refused by name") {
    fs::create_symlink("nowhere/x", folder / "broken");
    CHECK(contains(message_of([&] { atomic_file("/dev/null"); }), "/dev/null: is not a regular file"));
    CHECK(contains(message_of([&] { atomic_file(folder / "broken"); }),
                   "broken: is a symbolic link to nowhere"));
    CHECK(contains(message_of([&] { atomic_file(folder / std::string(300, 'x')); }),
                   ": cannot be examined: File name too long"));
    write_bytes(folder / "f", "");
    CHECK(contains(message_of([&] { atomic_file(folder / "f/x"); }),
                   "f/x: cannot be written: Not a directory"));
  }
  SUBCASE("a name may be as long as the file system allows") {
    const std::string longest(255, 'x');
    atomic_file file(folder / longest);
    file.write("new");
    file.commit();
    CHECK(read_bytes(folder / longest) == "new");
  }
  SUBCASE("no descriptor stays open") {
    const auto open_files = [] {
      return std::distance(fs::directory_iterator("/proc/self/fd"), fs::directory_iterator());
    };
    const auto before = open_files();
    for (int i = 0; i < 20; ++i) {
      atomic_file done(folder / "out");
      done.write("x");
      done.commit();
      atomic_file given_up(folder / "out");
      const mapped_file map(folder / "out");
      CHECK(map.bytes().size() == 1);
    }
    CHECK(open_files() == before);
  }
#else
  SUBCASE("a file that is mapped is not replaced, and says so") {
    write_bytes(folder / "out", "old");
    const mapped_file map(folder / "out");
    CHECK(contains(message_of([&] {
                     atomic_file file(folder / "out");
                     file.write("new");
                     file.commit();
                   }),
                   "out: cannot be put in place: "));
    CHECK(read_bytes(folder / "out") == "old");
    CHECK(folder.entries() == 1);
  }
#endif
}

TEST_CASE("names in any script are read, written and told") {
  const temporary_folder folder;
  const auto path = folder.path() / io::path_named("größe-模.safetensors");
  CHECK(contains(message_of([&] { safetensors_file file(path); }), "größe-模.safetensors: cannot be opened"));
  const std::vector<float> elements(6, 2.0F);
  write_safetensors(path, {{make_tensor_source<float>("x", {6}, elements)}});
  CHECK(safetensors_file(path).at("x").data<float>()[5] == 2);
  CHECK(io::path_text(path.filename()) == "größe-模.safetensors");
}

}  // namespace test_round_trip
