// A checkpoint is one file, an index with its shards, or a folder; every way that they can disagree is
// refused.
#include "files.hpp"

#ifndef _WIN32
#include <unistd.h>
#endif

#include <algorithm>

namespace test_checkpoint {
using namespace mpi_router;
using namespace io_test;

namespace {

void write_shard(const std::filesystem::path& path, const std::vector<std::string>& names, float value) {
  const std::vector<float> elements(4, value);
  std::vector<tensor_source> sources;
  sources.reserve(names.size());
  for (const auto& name : names) {
    sources.push_back(make_tensor_source<float>(name, {2, 2}, elements));
  }
  write_safetensors(path, sources);
}

std::vector<std::string> names_of(const checkpoint& c) {
  std::vector<std::string> names;
  for (const auto* t : c.tensors()) {
    names.push_back(t->name());
  }
  return names;
}

const std::string index_name = "model.safetensors.index.json";

}  // namespace

TEST_CASE("one file, one folder, one index: the same tensors") {
  const temporary_folder folder;
  write_shard(folder / "model-00001-of-00002.safetensors", {"b", "d"}, 1);
  write_shard(folder / "model-00002-of-00002.safetensors", {"a", "c"}, 2);
  const std::vector<std::string> all{"a", "b", "c", "d"};
  const auto check = [&](const checkpoint& c) {
    CHECK(names_of(c) == all);
    CHECK(c.shards().size() == 2);
    REQUIRE(c.find("c") != nullptr);
    CHECK(c.find("c")->data<float>()[3] == 2);
    CHECK(c.find("c")->file().filename() == "model-00002-of-00002.safetensors");
    CHECK(c.find("b")->data<float>()[0] == 1);
    CHECK(c.find("bb") == nullptr);
    CHECK(c.find("e") == nullptr);
    CHECK(c.find("") == nullptr);
  };
  SUBCASE("folder without an index") {
    const checkpoint c(folder.path());
    check(c);
    CHECK(c.index().empty());
  }
  SUBCASE("folder with an index; other files do not matter") {
    write_bytes(folder / index_name,
                R"({"metadata":{"total_size":64,"more":[1,{"x":null}]},"weight_map":)"
                R"({"a":"model-00002-of-00002.safetensors","b":"model-00001-of-00002.safetensors",)"
                R"("c":"model-00002-of-00002.safetensors","d":"model-00001-of-00002.safetensors"}})");
    write_bytes(folder / "consolidated.safetensors", "not a checkpoint");
    write_bytes(folder / "config.json", "{}");
    check(checkpoint(folder.path()));
    const checkpoint c(folder / index_name);
    check(c);
    CHECK(c.index() == folder / index_name);
  }
  SUBCASE("an index may leave tensors out") {
    write_bytes(folder / index_name, R"({"weight_map":{"a":"model-00002-of-00002.safetensors"}})");
    CHECK(names_of(checkpoint(folder.path())) == std::vector<std::string>{"a"});
  }
  SUBCASE("hidden files are no part of it") {
    write_bytes(folder / "._model-00001-of-00002.safetensors", "not a checkpoint");
    write_bytes(folder / ("._" + index_name), "nor an index");
    check(checkpoint(folder.path()));
  }
  SUBCASE("one file of them") {
    const checkpoint c(folder / "model-00001-of-00002.safetensors");
    CHECK(names_of(c) == std::vector<std::string>{"b", "d"});
  }
  SUBCASE("through symbolic links, as download caches lay them out") {
    std::filesystem::create_directory(folder / "snapshot");
    for (const char* name : {"model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"}) {
      link_to(std::string("../") + name, folder / "snapshot" / name);
    }
    check(checkpoint(folder / "snapshot"));
  }
}

TEST_CASE("shards that disagree") {
  const temporary_folder folder;
  write_shard(folder / "1.safetensors", {"a", "b"}, 1);
  const auto open = [&](const std::filesystem::path& path) {
    return message_of([&] { checkpoint c(path); });
  };
  const auto open_index = [&](const std::string& index) {
    write_bytes(folder / index_name, index);
    return open(folder.path());
  };
  SUBCASE("a tensor in two shards") {
    write_shard(folder / "2.safetensors", {"b", "c"}, 2);
    CHECK(open(folder.path()) ==
          (folder / "2.safetensors").string() + ": tensor 'b': is in 1.safetensors too");
  }
  SUBCASE("a missing shard") {
    CHECK(contains(open_index(R"({"weight_map":{"a":"1.safetensors","c":"2.safetensors"}})"),
                   (folder / "2.safetensors").string() + ": cannot be opened"));
  }
  SUBCASE("a damaged shard") {
    write_bytes(folder / "2.safetensors", "");
    CHECK(contains(open(folder.path()), (folder / "2.safetensors").string() + ": is empty"));
  }
  SUBCASE("a tensor that the shard lacks") {
    CHECK(open_index(R"({"weight_map":{"a":"1.safetensors","c":"1.safetensors"}})") ==
          (folder / "1.safetensors").string() +
              ": has no tensor 'c', which model.safetensors.index.json promises");
  }
  SUBCASE("a way out of the folder") {
    for (const char* shard :
         {"../1.safetensors", "/etc/passwd", "", ".", "..", "sub/1.safetensors", "a\\\\b", "a\\u0000b"}) {
      const auto message = open_index(R"({"weight_map":{"a":")" + std::string(shard) + "\"}}");
      CAPTURE(shard);
      CHECK(contains(message, index_name + ": tensor 'a': its shard '"));
      CHECK(contains(message, "is no plain file name"));
    }
  }
  SUBCASE("an index that is none") {
    const std::string where = (folder / index_name).string() + ": ";
    CHECK(open_index("") == where + "is empty");
    CHECK(open_index(std::string("\1[]", 3)) == where + "its JSON does not start with '{'");
    CHECK(open_index("<!DOCTYPE html><html>") ==
          where + "is an HTML page, not the file: an error or login page was saved in its place");
    CHECK(open_index("\n{}") == where + "has no weight_map");
    write_bytes(folder / index_name, "{");
    std::filesystem::resize_file(folder / index_name, 100'000'001);
    CHECK(open(folder.path()) == where + "is too long for an index: 100000001 bytes");
    CHECK(open_index("{}") == where + "has no weight_map");
    CHECK(contains(open_index("{\"weight_map\":"), "no valid JSON at byte"));
    CHECK(open_index(R"({"weight_map":[]})") == where + "the weight_map must map tensor names to file names");
    CHECK(contains(open_index(R"({"weight_map":"x"})"), "must map tensor names"));
    CHECK(contains(open_index(R"({"weight_map":{"a":1}})"), "to file names, and 'a' does not"));
    CHECK(contains(open_index(R"({"weight_map":{"a":{}}})"), "to file names, and 'a' does not"));
    CHECK(contains(open_index(R"({"weight_map":{"a":"1.safetensors","a":"1.safetensors"}})"),
                   "the key 'a' appears twice in 'weight_map'"));
    CHECK(contains(open_index(R"({"weight_map":{},"weight_map":{}})"), "'weight_map' appears twice"));
    CHECK(contains(open_index(R"({"metadata":{"a":1,"a":2},"weight_map":{}})"),
                   "'a' appears twice in 'metadata'"));
    CHECK(contains(open_index("{\"metadata\":" + std::string(100000, '[')), "nested deeper than 127 levels"));
  }
  SUBCASE("names of files are printable in messages") {
    const std::string evil = "\xc2\x9b[31m";  // a control that Windows has in names too
    write_shard(folder / (evil + ".safetensors"), {"b"}, 1);
    CHECK(contains(open(folder.path()), "tensor 'b': is in 1.safetensors too") !=
          contains(open(folder.path()), "tensor 'b': is in \\xc2\\x9b[31m.safetensors too"));
    CHECK_FALSE(contains(open(folder.path()), evil));
    write_bytes(folder / (evil + ".safetensors.index.json"), R"({"weight_map":{"c":"1.safetensors"}})");
    CHECK(contains(open(folder.path()), "which \\xc2\\x9b[31m.safetensors.index.json promises"));
    write_bytes(folder / (evil + "2.safetensors.index.json"), "{}");
    CHECK(contains(open(folder.path()), "such as \\xc2\\x9b[31m"));
  }
  SUBCASE("a folder of two minds, or of none") {
    write_bytes(folder / "a.safetensors.index.json", "{}");
    write_bytes(folder / "b.safetensors.index.json", "{}");
    CHECK(contains(open(folder.path()),
                   "holds 2 index files; name the one to open, such as a.safetensors.index.json"));
    std::filesystem::create_directory(folder / "empty");
    CHECK(contains(open(folder / "empty"), "empty: holds no *.safetensors file: it is empty"));
    CHECK(contains(open(folder / "missing"), "missing: cannot be opened"));
    CHECK(contains(open(folder / "missing.json"), "missing.json: cannot be opened"));
  }
}

TEST_CASE("what the names of the shards promise, and what the index omits") {
  const temporary_folder folder;
  const std::vector<std::string> none;
  const auto name = [](int i, int of) {
    return "model-0000" + std::to_string(i) + "-of-0000" + std::to_string(of) + ".safetensors";
  };
  write_shard(folder / name(1, 3), {"a", "b"}, 1);
  write_shard(folder / name(3, 3), {"c"}, 2);
  SUBCASE("a shard that is not there") {
    CHECK(checkpoint(folder.path()).missing_shards() == std::vector{name(2, 3)});
    CHECK(checkpoint(folder / name(3, 3)).missing_shards() == std::vector{name(1, 3), name(2, 3)});
    write_shard(folder / name(2, 3), {"d"}, 2);
    CHECK(checkpoint(folder.path()).missing_shards() == none);
    CHECK(checkpoint(folder / name(3, 3)).missing_shards() == std::vector{name(1, 3), name(2, 3)});
  }
  SUBCASE("a series that counts from 0, and names that are no series") {
    write_shard(folder / name(0, 3), {"d"}, 2);
    CHECK(checkpoint(folder.path()).missing_shards() == std::vector{name(2, 3)});
    std::filesystem::remove(folder / name(0, 3));
    std::filesystem::remove(folder / name(1, 3));
    std::filesystem::remove(folder / name(3, 3));
    for (const char* plain :
         {"x-of-3.safetensors", "1-of-.safetensors", "Qwen3-mp4.safetensors", "state-of-the-art.safetensors",
          "1-of-100001.safetensors", "1-of-99999999999999999999.safetensors"}) {
      write_shard(folder / plain, {plain}, 1);
    }
    CHECK(checkpoint(folder.path()).missing_shards() == none);
  }
  SUBCASE("several series, and a name that says of twice") {
    write_shard(folder / "lora-00001-of-00003.safetensors", {"x"}, 1);
    write_shard(folder / "best-of-5-01-of-2.safetensors", {"y"}, 1);
    CHECK(checkpoint(folder.path()).missing_shards() ==
          std::vector<std::string>{"best-of-5-02-of-2.safetensors", "lora-00002-of-00003.safetensors",
                                   "lora-00003-of-00003.safetensors", name(2, 3)});
  }
  SUBCASE("without an index nothing is omitted") {
    CHECK(checkpoint(folder.path()).unindexed().empty());
    CHECK(checkpoint(folder.path()).unlisted_files() == none);
  }
  SUBCASE("tensors and files that the index does not name") {
    write_bytes(folder / index_name, R"({"weight_map":{"b":"model-00001-of-00003.safetensors"}})");
    const checkpoint c(folder.path());
    CHECK(names_of(c) == std::vector<std::string>{"b"});
    REQUIRE(c.unindexed().size() == 1);
    CHECK(c.unindexed()[0]->name() == "a");
    CHECK(c.unlisted_files() == std::vector{name(3, 3)});
    CHECK(c.missing_shards() == std::vector{name(2, 3), name(3, 3)});
  }
  SUBCASE("in the order of their names, wherever the bytes lie") {
    write_bytes(folder / "1.safetensors", raw_file(R"({"z":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},)"
                                                   R"("y":{"dtype":"U8","shape":[1],"data_offsets":[1,2]},)"
                                                   R"("x":{"dtype":"U8","shape":[1],"data_offsets":[2,3]}})",
                                                   "zyx"));
    write_bytes(folder / index_name, R"({"weight_map":{"x":"1.safetensors"}})");
    const checkpoint c(folder.path());
    CHECK(c.unlisted_files() == std::vector{name(1, 3), name(3, 3)});
    REQUIRE(c.unindexed().size() == 2);
    CHECK(c.unindexed()[0]->name() == "y");
    CHECK(c.unindexed()[1]->name() == "z");
  }
  SUBCASE("an index named without its folder") {
    write_bytes(folder / index_name, R"({"weight_map":{"c":"model-00003-of-00003.safetensors"}})");
    const auto before = std::filesystem::current_path();
    std::filesystem::current_path(folder.path());
    const checkpoint c(index_name);
    std::filesystem::current_path(before);
    CHECK(names_of(c) == std::vector<std::string>{"c"});
    CHECK(c.unlisted_files() == std::vector{name(1, 3)});
  }
}

#ifndef _WIN32
TEST_CASE("a folder that may not be listed") {
  const temporary_folder folder;
  std::filesystem::create_directory(folder / "closed");
  std::filesystem::permissions(folder.path(), std::filesystem::perms(0755));
  std::filesystem::permissions(folder / "closed", std::filesystem::perms::none);
  const bool is_root = ::geteuid() == 0;  // who may list any folder
  if (!is_root || ::seteuid(65534) == 0) {
    const auto said = message_of([&] { const checkpoint c(folder / "closed"); });
    REQUIRE((!is_root || ::seteuid(0) == 0));
    CHECK(contains(said, "closed: cannot be listed: Permission denied"));
  }
}
#endif

}  // namespace test_checkpoint
