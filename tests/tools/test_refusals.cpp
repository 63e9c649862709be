// Bad input and bad usage: exit status 2, one clear line, nothing written.
#include "program.hpp"

namespace test_refusals {
using namespace tool_test;

namespace {

std::string valid_file() { return read_bytes(data_file("tiny-mpi.safetensors")); }

/// The header of a file, and its data.
std::pair<std::string, std::string> split(const std::string& bytes) {
  std::uint64_t length = 0;
  std::memcpy(&length, bytes.data(), sizeof length);
  return {bytes.substr(8, length), bytes.substr(8 + length)};
}

std::string replaced(std::string text, const std::string& what, const std::string& by) {
  const auto at = text.find(what);
  REQUIRE(at != text.npos);
  return text.replace(at, what.size(), by);
}

}  // namespace

TEST_CASE("each kind of damage: refused by name, and neither JSON nor trace appears") {
  const temporary_folder folder;
  const auto [header, data] = split(valid_file());
  const std::string first = "model.layers.0.mlp.router.weight";
  const auto refuse = [&](const std::string& bytes, const std::string& reason) {
    CAPTURE(reason);
    write_bytes(folder / "damaged.safetensors", bytes);
    const std::vector<std::string> arguments{folder / "damaged.safetensors", "--json", folder / "out.json",
                                             "--trace", folder / "out.csv"};
    check_refused(arguments, reason);
    check_refused(arguments, "damaged.safetensors: ");
    check_refused({"recondition", folder / "damaged.safetensors", folder / "out.safetensors"}, reason);
    // Beside a good file, which is looked at all the same, it is named too.
    const auto both = run({"--list", data_file("tiny-vanilla.safetensors"), folder / "damaged.safetensors"});
    CHECK(both.status == 2);
    CHECK(contains(both.err, reason));
    CHECK(contains(both.out, "model.layers"));
    CHECK(folder.entries() == 1);
  };
  const auto with_header = [&](const std::string& text) { return io_test::raw_file(text, data); };

  refuse("", "is empty");
  refuse(std::string("\x10\0\0", 3), "too short");
  refuse(valid_file().substr(0, 100), "is cut short");
  refuse(valid_file().substr(0, valid_file().size() - 1), "reach past the file");
  refuse(valid_file() + "x", "its tensors end at byte");
  refuse(std::string(8, '\xff') + header, "header would have");
  refuse(with_header("[" + header.substr(1)), "does not start with '{'");
  refuse(with_header(header.substr(0, header.find_last_of('}'))), "no valid JSON");
  refuse(with_header(replaced(header, "\"F32\"", "\"F33\"")), "tensor '" + first + "': unknown dtype 'F33'");
  refuse(with_header(replaced(header, "[8,256]", "[8,257]")), "tensor '" + first + "'");
  refuse(with_header(replaced(header, "[8,256]", "[8,-256]")), "no integer from 0 up");
  refuse(with_header(replaced(header, "[8,256]", "[4294967296,4294967296]")), "overflows");
  refuse(with_header(replaced(header, "[0,8192]", "[0,18446744073709551615]")), "reach past the file");
  refuse(with_header(replaced(header, "[0,8192]", "[8192,0]")), "end before they begin");
  refuse(with_header(replaced(header, "[8192,16384]", "[8191,16383]")), "inside the tensor before it");
  refuse(with_header(replaced(header, "model.layers.1.mlp.router", "model.layers.0.mlp.router")),
         "appears twice");
}

TEST_CASE("shards that disagree") {
  const temporary_folder folder;
  const auto layer = random_layer(50, 2, 3, 4);
  checkpoint_builder builder;
  add_layer(builder, "", layer);
  builder.write_shards(folder.path(), 2);
  const std::string index = folder / "model.safetensors.index.json";
  const std::string text = read_bytes(index);
  std::filesystem::remove(folder / "model-2.safetensors");
  check_refused({folder.path()}, "model-2.safetensors: cannot be opened");
  write_bytes(index, replaced(text, "model-2.safetensors", "model-1.safetensors"));
  check_refused({folder.path()}, "has no tensor 'mlp.experts.gate_proj'");
  write_bytes(index, replaced(text, "model-2.safetensors", "../model-2.safetensors"));
  check_refused({folder.path()}, "is no plain file name");
  write_bytes(index, "{");
  check_refused({folder.path()}, "model.safetensors.index.json: no valid JSON");
}

TEST_CASE("usage") {
  const temporary_folder folder;
  const auto path = data_file("tiny-mpi.safetensors");
  check_refused({"--no-such-flag"}, "--no-such-flag");
  check_refused({folder / "missing.safetensors"}, "missing.safetensors: cannot be opened");
  check_refused({folder.path()}, "holds no *.safetensors file");
  check_refused({path, "--tolerance", "0"}, "--tolerance must lie between 0 and 1");
  check_refused({path, "--tolerance", "nan"}, "--tolerance");
  check_refused({path, "--tolerance", "x"}, "--tolerance");
  check_refused({path, "--max-steps", "-1"}, "--max-steps must lie between 0 and");
  check_refused({path, "--max-steps", "1.5"}, "--max-steps");
  check_refused({path, "--max-steps", "99999999999999999999"}, "--max-steps");
  check_refused({path, "--require-angle", "-0.1"}, "--require-angle must be positive");
  check_refused({path, "--layout", "dfn"}, "there is no layout 'dfn'");
  check_refused({path, "--router", "a"}, "--router and --gate go together");
  check_refused({path, "--gate", "a"}, "--router and --gate go together");
  check_refused({path, "--router", "{layer}a", "--gate", "b"}, "in both --router and --gate");
  check_refused({path, "--router", "a.{expert}", "--gate", "b"}, "{expert} belongs into --gate");
  check_refused({path, "--summary", "--experts"}, "--summary");
  check_refused({path, "--color", "maybe"}, "--color");
  check_refused({path, "--json"}, "--json");
  check_refused({path, "--trace", "-"}, "--trace needs a file");
  check_refused({"recondition"}, "required");
  check_refused({"recondition", path}, "required");
  check_refused({"recondition", path, folder / "o", "--steps", "-1"}, "--steps must lie between 0 and");
  check_refused({"recondition", path, folder / "o", "--radius", "0"}, "must be positive");
  check_refused({"recondition", path, folder / "o", "--c-prime", "inf"}, "must be positive");
  check_refused({"recondition", path, folder / "o", "--c-prime", "4", "--radius", "1"}, "excludes");
  check_refused({path, "recondition", path, folder / "o"}, "recondition comes first");
  CHECK(folder.entries() == 0);
}

TEST_CASE("outputs that cannot be written, and outputs that are inputs") {
  const temporary_folder folder;
  const std::string path = folder / "m.safetensors";
  const auto bytes = valid_file();
  write_bytes(path, bytes);
  std::filesystem::create_symlink("m.safetensors", folder / "link");
  std::filesystem::create_hard_link(path, folder / "hard");
  std::filesystem::create_directory(folder / "d");
  for (const char* flag : {"--json", "--trace"}) {
    check_refused({path, flag, folder / "missing/out"}, "missing/out: cannot be written");
    check_refused({path, flag, folder / "d"}, "d: is a folder");
    check_refused({path, flag, "/dev/null"}, "/dev/null: is not a regular file");
    check_refused({path, flag, folder / "out", "--report", "/proc/nope"},
                  "/proc/nope: the folder cannot be made");
    check_refused({path, flag, folder / "out", "--report", path}, "--report needs a folder");
    for (const std::string out : {"m.safetensors", "link", "hard", "d/../m.safetensors"}) {
      check_refused({path, flag, folder / out}, "never overwritten");
      check_refused({folder / "link", flag, folder / out}, "never overwritten");
    }
  }
  std::filesystem::create_directory_symlink("d", folder / "e");
  for (const auto& [one, other] :
       {std::pair{"same", "same"}, {"same", "./same"}, {"d/same", "d/../e/same"}}) {
    check_refused({path, "--json", folder / one, "--trace", folder / other},
                  "--json and --trace name one file");
  }
  for (const char* flag : {"--json", "--trace"}) {
    check_refused({path, flag, folder / "e/index.html", "--report", folder / "d"}, "name one file");
    check_refused({path, flag, folder / "e/data/checkpoint-0-cosine.csv", "--report", folder / "d"},
                  "names a file of the report's own");
  }
  // One output that works and one that does not: neither is written.
  check_refused({path, "--json", folder / "out.json", "--trace", folder / "missing/out"},
                "cannot be written");
  CHECK(read_bytes(path) == bytes);
  CHECK(folder.entries() == 5);
  CHECK(std::filesystem::is_empty((folder / "d").string()));
}

TEST_CASE("names that are one file seen from the folder the program runs in") {
  const temporary_folder folder;
  const auto here = std::filesystem::current_path();
  std::filesystem::current_path(folder.path());
  check_refused({data_file("tiny-mpi.safetensors"), "--json", "x", "--trace", "./x"}, "name one file");
  std::filesystem::current_path(here);
  CHECK(folder.entries() == 0);
}

TEST_CASE("a report that cannot be finished leaves the old page, and no JSON") {
  const temporary_folder folder;
  std::filesystem::create_directories(folder / "page/data/checkpoint-0-lambda.csv");
  write_bytes(folder / "page/index.html", "old");
  check_refused(
      {data_file("tiny-mpi.safetensors"), "--json", folder / "out.json", "--report", folder / "page"},
      "checkpoint-0-lambda.csv: is a folder");
  CHECK(read_bytes(folder / "page/index.html") == "old");
  CHECK(std::distance(std::filesystem::directory_iterator(folder / "page"), {}) == 2);
  CHECK(folder.entries() == 1);
}

TEST_CASE("names from files do not reach the terminal as they are") {
  const std::string evil =
      "\x1b[31m\x07\xc2\x9b"
      "2J";
  const temporary_folder folder;
  checkpoint_builder builder;
  add_layer(builder, evil + ".0.", random_layer(60, 2, 3, 4));
  builder.add<float>(evil + ".1.mlp.router.weight", {2, 4}, std::vector<float>(8, 1.0F));
  builder.add<float>(evil + ".1.mlp.experts.gate_proj", {2, 3, 5}, std::vector<float>(30, 1.0F));
  const std::string path = folder / (evil + ".safetensors");
  builder.write(path);
  const auto check_clean = [](const outcome& result, int status) {
    CAPTURE(result.out);
    CAPTURE(result.err);
    CHECK(result.status == status);
    for (const std::string bad : {"\x1b", "\x07", "\xc2\x9b"}) {
      CHECK_FALSE(contains(result.out, bad));
      CHECK_FALSE(contains(result.err, bad));
    }
    CHECK(contains(result.out + result.err, "\\x1b[31m\\x07"));
  };
  check_clean(run({path, "--experts"}), 0);
  check_clean(run({path, "--summary", "--report", folder / "page"}), 0);
  check_clean(run({"recondition", path, folder / (evil + "out.safetensors")}), 0);
  checkpoint_builder broken;
  broken.add<float>(evil + ".mlp.router.weight", {2, 4}, std::vector<float>(8, 1.0F));
  broken.add<float>(evil + ".mlp.experts.gate_proj", {2, 3, 5}, std::vector<float>(30, 1.0F));
  broken.write(folder / "broken.safetensors");
  check_clean(run({folder / "broken.safetensors"}), 2);
}

TEST_CASE("an output that exists is replaced whole") {
  const temporary_folder folder;
  write_bytes(folder / "out.json", std::string(1000000, 'x'));
  const auto document = run_json({data_file("tiny-mpi.safetensors")});
  CHECK(run({data_file("tiny-mpi.safetensors"), "--json", folder / "out.json"}).status == 0);
  CHECK(json::parse(read_bytes(folder / "out.json")) == document);
}

}  // namespace test_refusals
