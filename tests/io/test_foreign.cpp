// What is no safetensors checkpoint is named, so that the reader knows what to do.
#include "files.hpp"

#include <algorithm>
#include <utility>

namespace test_foreign {
using namespace mpi_router;
using namespace io_test;

namespace {

/// What opening a file of these bytes says, after its name.
std::string refusal_named(const std::string& bytes, const std::string& name = "model.safetensors") {
  const temporary_folder folder;
  write_bytes(folder / name, bytes);
  const auto said = message_of([&] { const checkpoint model(folder / name); });
  const auto start = (folder / name).string() + ": ";
  REQUIRE(said.starts_with(start));
  return said.substr(start.size());
}

/// A folder that is filled by calls, and what opening it says after its name.
class some_folder {
 public:
  some_folder& file(const std::string& name, const std::string& bytes = "") {
    const auto path = folder_ / ("f/" + name);
    std::filesystem::create_directories(path.parent_path());
    write_bytes(path, bytes);
    return *this;
  }
  [[nodiscard]] std::filesystem::path path() const { return folder_ / "f"; }
  [[nodiscard]] std::string refusal(const std::string& below = "") const {
    const auto path = folder_ / ("f/" + below);
    const auto said = message_of([&] { const checkpoint model(path); });
    REQUIRE(said.starts_with(path.string() + ": "));
    auto words = said.substr(path.string().size() + 2);
#ifdef _WIN32
    std::replace(words.begin(), words.end(), '\\', '/');
#endif
    return words;
  }

 private:
  temporary_folder folder_;
};

const std::string gguf{"GGUF\3\0\0\0\0\0\0\0\0\0\0\0", 16};
const std::string pytorch_zip{
    "PK\3\4\0\0\x08\x08\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\x10\0\0\0archive/data.pklFB", 48};
const std::string only = "; only safetensors and GGUF are read";
const std::string dcp = "is a distributed checkpoint of PyTorch (DCP)" + only +
                        ", and examples/export_dcp writes the former from it";
const std::string megatron =
    "is a checkpoint of Megatron" + only + ", and examples/export_dcp writes the former from torch_dist";

}  // namespace

TEST_CASE("pointers that stand in the place of a file") {
  CHECK(refusal_named("version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 4976698672\n") ==
        "is a Git LFS pointer, not the file: git lfs pull");
  CHECK(refusal_named("# xet version 0\nfilesize = 1\n") ==
        "is a Git Xet pointer, not the file: git xet checkout");
  CHECK(refusal_named("version https://hawser.github.com/spec/v1\n") ==
        "is a Git LFS pointer, not the file: git lfs pull");
  CHECK(refusal_named("/annex/objects/SHA256E-s1--0\n") ==
        "is a git-annex pointer, not the file: git annex get");
}

TEST_CASE("other formats of weights") {
  CHECK(contains(refusal_named(gguf, "m.gguf"), "is cut short"));  // it is read as what it is
  CHECK(
      contains(refusal_named("FUGG" + gguf), "is a big-endian GGUF file; only little-endian ones are read"));
  for (const char* start : {"tjgg", "lmgg", "fmgg"}) {
    CHECK(refusal_named(start + std::string("\1\0\0\0", 4)) == "is a GGML file" + only);
  }
  CHECK(refusal_named(pytorch_zip, "pytorch_model.bin") ==
        "is a PyTorch file, a zip archive with a pickle in it" + only);
  CHECK(refusal_named("\x80\x02\x8a\x0a\x6c\xfc\x9c\x46", "m.pth") ==
        "is a Python pickle, as PyTorch's old .pt, .pth and .bin files are" + only);
  for (const char* start : {"\x80\x03", "\x80\x04", "\x80\x05"}) {
    CHECK(refusal_named(start + std::string("\x95\0\0\0\0\0\0\0\0", 9)) == "is a Python pickle" + only);
  }
  CHECK(refusal_named(std::string("ARROW1\0\0", 8)) == "is an Arrow file" + only);
  CHECK(refusal_named("PAR1\x15") == "is a Parquet file" + only);
  CHECK(refusal_named("\x89HDF\r\n\x1a\n") == "is an HDF5 file, as Keras' .h5 files are" + only);
  CHECK(refusal_named("\x93NUMPY\x01") == "is a NumPy array" + only);
  CHECK(refusal_named(std::string("PK\3\4\0\0\0\0\0\0\0\0\0\0w.npy", 19)) == "is a NumPy archive" + only);
}

TEST_CASE("what must be unpacked first") {
  CHECK(refusal_named("PK\3\4model.safetensors") == "is a zip archive; unpack it first");
  CHECK(refusal_named("\x1f\x8b\x08\x01") == "is compressed by gzip; unpack it first");
  CHECK(refusal_named("\x28\xb5\x2f\xfd\x04") == "is compressed by zstd; unpack it first");
  CHECK(refusal_named("\xfd"
                      "7zXZ") == "is compressed by xz; unpack it first");
  CHECK(refusal_named("BZh91AY") == "is compressed by bzip2; unpack it first");
  CHECK(refusal_named("\x04\x22\x4d\x18") == "is compressed by lz4; unpack it first");
  CHECK(refusal_named("7z\xbc\xaf\x27\x1c") == "is a 7z archive; unpack it first");
  CHECK(refusal_named("Rar!\x1a\x07") == "is a RAR archive; unpack it first");
  CHECK(refusal_named("model.safetensors" + std::string(240, '\0') + "ustar") ==
        "is a tar archive; unpack it first");
  // Their bytes make a small length: the file after it decides.
  CHECK(refusal_named(std::string("\x1f\x8b\x08\0\0\0\0\0", 8) + std::string(600000, 'x')) ==
        "is compressed by gzip; unpack it first");
}

TEST_CASE("what was saved in the place of a file") {
  const std::string page = "is an HTML page, not the file: an error or login page was saved in its place";
  CHECK(refusal_named("<!DOCTYPE html>\n<title>404</title>") == page);
  CHECK(refusal_named("\n  <HTML lang=en>") == page);
  CHECK(refusal_named("<?xml version='1.0'?>\n<!-- x --><html>") == page);
  CHECK(refusal_named("Entry not found") == "is text, not a checkpoint; it begins 'Entry not found'");
  CHECK(refusal_named("Not\tfound") == "is text, not a checkpoint; it begins 'Not\\x09found'");
  CHECK(refusal_named("404") == "is text, not a checkpoint; it begins '404'");
  CHECK(refusal_named("\r\n{\"error\":\"Access denied\"}\nmore") ==
        "is text, not a checkpoint; it begins '{\"error\":\"Access denied\"}'");
  CHECK(refusal_named(std::string(500, 'x')) ==
        "is text, not a checkpoint; it begins '" + std::string(80, 'x') + "...'");
  CHECK(refusal_named("\xc2\x9b"
                      "2J is no text for a terminal") ==
        "is text, not a checkpoint; it begins '\\xc2\\x9b"
        "2J is no text for a terminal'");
}

TEST_CASE("downloads that are not there yet") {
  CHECK(refusal_named("") == "is empty");
  CHECK(refusal_named(std::string(3, '\0')) == "begins with zeros, as a download that was not finished does");
  CHECK(refusal_named(std::string(100000, '\0')) ==
        "begins with zeros, as a download that was not finished does");
  const std::string whole = raw_file(R"({"x":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}})", "12345678");
  CHECK(contains(refusal_named(whole.substr(0, 30)), "is cut short: its header has 54 bytes, the file 30"));
  CHECK(contains(
      refusal_named(whole.substr(0, whole.size() - 1)),
      "reach past the file, which holds 7 bytes of data: it is cut short, or its download was not finished"));
}

TEST_CASE("a length that looks like another format is a length, where JSON follows it") {
  for (const std::size_t length : {std::size_t{0x0280}, std::size_t{0x8b1f}}) {  // as a pickle and gzip begin
    std::string header = R"({"x":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}})";
    header.resize(length, ' ');
    const temporary_folder folder;
    write_bytes(folder / "a", raw_file(header));
    CHECK(message_of([&] { const safetensors_file file(folder / "a"); }) == "");
    CHECK(contains(refusal_named(raw_file(header).substr(0, 100)), "is cut short: its header has"));
  }
}

TEST_CASE("a folder whose files are of another format: the largest of them is named") {
  const std::string nothing = "holds no *.safetensors file; ";
  CHECK(some_folder().file("m.bin", gguf).refusal() == nothing + "m.bin is a GGUF file, not safetensors");
  CHECK(some_folder()
            .file("config.json", "{}")
            .file("README.md", "words")
            .file("optimizer.pt", "\x80\x02)")
            .file("pytorch_model.bin", pytorch_zip)
            .file("z.txt", "GGUF")
            .refusal() ==
        nothing + "pytorch_model.bin is a PyTorch file, a zip archive with a pickle in it" + only);
  CHECK(some_folder().file("config.json", "{}").file(".m.gguf", "x").refusal() ==
        "holds no *.safetensors file");
  CHECK(some_folder().file("config.json", "{}").file("model.safetensors.incomplete", "x").refusal() ==
        nothing + "model.safetensors.incomplete is a download that was not finished");
  for (const std::string end : {"part", "aria2", "crdownload", "download"}) {
    CHECK(some_folder().file("a." + end, "x").refusal() ==
          nothing + "a." + end + " is a download that was not finished");
  }
}

TEST_CASE("a folder whose folders hold the checkpoint") {
  const std::string nothing = "holds no *.safetensors file; ";
  CHECK(some_folder().file("transformer/a.safetensors").refusal() == nothing + "its folder transformer does");
  CHECK(some_folder().file("a/b/c.safetensors").file("d/e.safetensors").file("f.bin", gguf).refusal() ==
        nothing + "its folder a/b does (and 1 more)");
  CHECK(some_folder()
            .file(".git/a.safetensors")
            .file("x/.a.safetensors")
            .file("1/2/3/a.safetensors")
            .refusal() == "holds no *.safetensors file");
}

TEST_CASE("names that are not ASCII, such as those that Windows does not keep in UTF-8") {
  const std::string nothing = "holds no *.safetensors file; ", name = "mod\xc3\xa8le-\xe6\xa8\xa1";
  CHECK(some_folder().file(name + "/a.safetensors").refusal() == nothing + "its folder " + name + " does");
  CHECK(some_folder().file(name + "/" + name + "/a.safetensors").refusal() ==
        nothing + "its folder " + name + "/" + name + " does");
  CHECK(some_folder().file(name + ".bin", gguf).refusal() ==
        nothing + name + ".bin is a GGUF file, not safetensors");
  for (const auto& beside : {"hub/models--" + name + "/", std::string("hub/models--org--name/")}) {
    some_folder cache;
    cache.file(beside + "refs/main", name).file(beside + "snapshots/" + name + "/a.safetensors");
    CHECK(contains(cache.refusal("hub"), beside + "snapshots/" + name));
  }
}

TEST_CASE("checkpoints that other programs write as folders") {
  CHECK(some_folder().file(".metadata", "x").file("__0_0.distcp", "PK\3\4").refusal() == dcp);
  CHECK(some_folder().file("__0_0.distcp").refusal() == dcp);
  CHECK(some_folder()
            .file(".metadata")
            .file("common.pt")
            .file("metadata.json")
            .file("__0_0.distcp")
            .refusal() == megatron);
  CHECK(some_folder().file("latest_checkpointed_iteration.txt").refusal() == megatron);
  CHECK(some_folder().file("mp_rank_00/model_optim_rng.pt").refusal() == megatron);
  CHECK(some_folder().file("iter_0000100/common.pt").refusal() == megatron);
  CHECK(some_folder().file("global_step5/x.pt").refusal() == "is a checkpoint of DeepSpeed" + only);
  CHECK(some_folder().file("mp_rank_00_model_states.pt").refusal() == "is a checkpoint of DeepSpeed" + only);
  CHECK(some_folder().file("zero_pp_rank_0_optim_states.pt").refusal() ==
        "is a checkpoint of DeepSpeed" + only);
  CHECK(some_folder().file(".metadata", "x").refusal() == dcp);
  for (const char* name : {"manifest.ocdbt", "_CHECKPOINT_METADATA"}) {
    CHECK(some_folder().file(name).refusal() == "is a checkpoint of Orbax" + only);
  }
  for (const char* name : {"model.ckpt.index", "saved_model.pb"}) {
    CHECK(some_folder().file(name).refusal() == "is a checkpoint of TensorFlow" + only);
  }
}

TEST_CASE("the Hugging Face cache: the snapshot to give is named") {
  some_folder cache;
  const std::string model = "hub/models--org--name/";
  cache.file(model + "blobs/0123", "x").file(model + "refs/main", "c0ffee");
  cache.file(model + "snapshots/aaa/config.json").file(model + "snapshots/c0ffee/model.safetensors");
  const auto advice = [&](const std::string& snapshot) {
    return "is part of the Hugging Face cache; give a snapshot in it: " +
           (cache.path() / "hub/models--org--name/snapshots" / snapshot).generic_string();
  };
  for (const char* below : {"", "hub", "hub/", "hub/models--org--name", "hub/models--org--name/snapshots",
                            "hub/models--org--name/blobs"}) {
    CAPTURE(below);
    CHECK(contains(cache.refusal(below), "is part of the Hugging Face cache; give a snapshot in it: "));
    CHECK(contains(cache.refusal(below), "hub/models--org--name/snapshots/c0ffee"));
  }
  CHECK(cache.refusal("hub/models--org--name") == advice("c0ffee"));
  cache.file(model + "refs/main", "gone\n");
  CHECK(cache.refusal("hub/models--org--name") == advice("aaa"));
  cache.file(model + "refs/main", "c0ffee\n");
  CHECK(cache.refusal("hub/models--org--name") == advice("c0ffee"));
  for (const char* beside : {"blobs/0123", "refs/main"}) {  // one of them tells the cache
    CHECK(contains(some_folder().file(beside, "a").file("snapshots/a/b").refusal(), "snapshots/a"));
  }
  // A snapshot is a folder like others.
  CHECK(cache.refusal("hub/models--org--name/snapshots/aaa") == "holds no *.safetensors file");
  CHECK(some_folder().file("snapshots/a/model.safetensors").refusal() ==
        "holds no *.safetensors file; its folder snapshots/a does");
}

}  // namespace test_foreign
