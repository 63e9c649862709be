// What is written is read back, bit for bit, for every type, and the bytes depend on nothing but the tensors.
#include "files.hpp"

#include <support/messages.hpp>
#include <support/random.hpp>

#include <algorithm>
#include <array>

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
  for (unsigned i = 0; i < io::dtype_table.size(); ++i) {
    const auto type = static_cast<dtype>(i);
    CHECK(dtype_from_string(to_string(type)) == type);
  }
  CHECK(to_string(dtype::boolean) == "BOOL");
  CHECK(to_string(dtype::u64) == "U64");
  CHECK(bits_of(dtype::f4) == 4);
  CHECK(bits_of(dtype::bf16) == 16);
  CHECK(bits_of(dtype::c64) == 64);
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
  SUBCASE("by a copy, where it does not") {
    const std::string header = R"({"x":{"dtype":")" + std::string(to_string(dtype_of<T>::value)) +
                               R"(","shape":[3,5],"data_offsets":[0,)" + std::to_string(bytes.size()) + "]}}";
    const std::string padding((16 - header.size() % 8 + 1) % 8, ' ');  // data at an odd address
    write_bytes(folder / "odd.safetensors",
                raw_file(header + padding, {reinterpret_cast<const char*>(bytes.data()), bytes.size()}));
    const safetensors_file file(folder / "odd.safetensors");
    const auto& x = file.at("x");
    auto loaded = x.template load<T>();
    CHECK(loaded.is_copy() == (sizeof(T) > 1));
    const auto* const before = loaded.data();
    const auto moved = std::move(loaded);
    CHECK(moved.data() == before);
    REQUIRE(moved.size() == elements.size());
    CHECK(same_bytes(moved.data(), elements));
    if (sizeof(T) > 1) {
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
  CHECK(tensor->file() == folder / "a.safetensors");
  CHECK(tensor->data<float>()[5] == 1.5F);
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
  CHECK(refused([&] { write("__metadata__", {6}); }, "no tensor may be called '__metadata__'"));
  CHECK(refused([&] { write(std::string("a\0b", 3), {6}); }, "no tensor may be called 'a\\x00b'"));
  CHECK(refused([&] { write("\xff\xfe", {6}); }, "'\\xff\\xfe' is not UTF-8"));
  const std::vector<tensor_source> twice{make_tensor_source<float>("x", {6}, elements),
                                         make_tensor_source<float>("x", {6}, elements)};
  CHECK(refused([&] { write_safetensors(target, twice); }, "two tensors are called 'x'"));
  CHECK(refused([&] { write_safetensors(target, {}, {{"key", "\xff"}}); }, "'\\xff' is not UTF-8"));
  CHECK(refused([&] { write_safetensors(target, {}, {{"\xff", "value"}}); }, "'\\xff' is not UTF-8"));
  // No reader would take a longer header: {"__metadata__":{"key":"x…"}}, padded to a multiple of 8.
  const auto with_header_of = [&](std::size_t bytes) {
    write_safetensors(target, {}, {{"key", std::string(bytes - 27, 'x')}});
  };
  CHECK(refused([&] { with_header_of(safetensors_file::longest_header + 1); },
                "the header would have 100000008 bytes, more than 100000000"));
  CHECK(folder.entries() == 0);
}

TEST_CASE("a file is never written over itself, by whatever name") {
  namespace fs = std::filesystem;
  const temporary_folder folder;
  const std::vector<float> elements(6, 2.0F);
  const std::vector<tensor_source> sources{make_tensor_source<float>("x", {6}, elements)};
  write_safetensors(folder / "a.safetensors", sources);
  fs::create_symlink("a.safetensors", folder / "link.safetensors");
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
  SUBCASE("a symbolic link stays, what it names is replaced") {
    write_bytes(folder / "real", "old");
    fs::create_symlink("real", folder / "link");
    atomic_file file(folder / "link");
    file.write("new");
    file.commit();
    CHECK(fs::is_symlink(folder / "link"));
    CHECK(read_bytes(folder / "real") == "new");
  }
  SUBCASE("what is no file, and what cannot be written, is refused by name") {
    fs::create_directory(folder / "d");
    fs::create_symlink("nowhere/x", folder / "broken");
    CHECK(contains(message_of([&] { atomic_file(folder / "d"); }), "d: is a folder"));
    CHECK(contains(message_of([&] { atomic_file("/dev/null"); }), "/dev/null: is not a regular file"));
    CHECK(contains(message_of([&] { atomic_file(folder / "missing/x"); }), "missing/x: cannot be written"));
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
}
