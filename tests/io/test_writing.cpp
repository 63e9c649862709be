// Whatever the system does while a file is put in place: afterwards either the old file or the whole new one
// is there, and no temporary file remains.
#include "files.hpp"
#include "interposed.hpp"

#include <mpi_router/io/atomic_folder.hpp>

#include <sys/wait.h>

#include <algorithm>
#include <functional>
#include <set>
#include <thread>

namespace test_writing {
using namespace mpi_router;
using namespace io_test;

namespace {

/// The names in a folder; the temporary ones as ".tmp".
std::multiset<std::string> names_in(const std::filesystem::path& folder) {
  std::multiset<std::string> names;
  for (const auto& entry : std::filesystem::directory_iterator(folder)) {
    const std::string name = entry.path().filename().string();
    names.insert(name.starts_with('.') && name.ends_with(".tmp") ? ".tmp" : name);
  }
  return names;
}

const std::string old_text = "old";
const std::string new_text = "the new text";

/// Replaces a file by a new one under these rules; what it says, empty if it worked. Whatever happened, the
/// file is the old or the new one, and alone.
std::string replacing(const std::vector<rule>& rules) {
  const temporary_folder folder;
  write_bytes(folder / "out", old_text);
  const std::string said = message_of([&] {
    const script rule_of(rules);
    atomic_file file(folder / "out");
    file.write(new_text);
    file.commit();
  });
  CHECK(names_in(folder.path()) == std::multiset<std::string>{"out"});
  CHECK(read_bytes(folder / "out") == (said.empty() ? new_text : old_text));
  CHECK((said.empty() || said.starts_with((folder / "out").string() + ": ")));
  return said;
}

/// Runs `action` in a process of its own under these rules; the status that waitpid gives.
int in_child(const std::vector<rule>& rules, const std::function<void()>& action) {
  const pid_t child = ::fork();
  if (child == 0) {
    const script rule_of(rules);
    action();
    ::_exit(0);
  }
  int status = -1;
  REQUIRE(::waitpid(child, &status, 0) == child);
  return status;
}

/// Kills `action` at each of its calls, before and after it, until one run goes through.
void kill_everywhere(const std::function<void()>& prepare, const std::function<void()>& action,
                     const std::function<void()>& check) {
  bool went_through = false;
  int kills = 0;
  for (int which = 1; !went_through; ++which) {
    for (const int after : {0, 1}) {
      prepare();
      const int status = in_child({{"", which, act::die, after}}, action);
      CAPTURE(which);
      CAPTURE(after);
      went_through = WIFEXITED(status);
      CHECK((went_through || WTERMSIG(status) == SIGKILL));
      kills += went_through ? 0 : 1;
      check();
    }
  }
  CHECK(kills >= 10);
}

/// `calls` with the letters of temporary names left out: ".out.XXXXXXXX.tmp" is "TEMPORARY".
std::vector<std::string> anonymous(std::vector<std::string> calls) {
  for (auto& call : calls) {
    const auto begin = call.find(" .out.");
    const auto end = call.find(".tmp");
    if (begin != call.npos && end == begin + 6 + 8) {
      call.replace(begin + 1, end + 4 - (begin + 1), "TEMPORARY");
    }
  }
  return calls;
}

}  // namespace

TEST_CASE("the calls, in their order: the bytes are on disk before the name is, and the name at the end") {
  const temporary_folder folder;
  std::filesystem::create_directory(folder / "sub");
  const script watched;
  atomic_file file(folder / "sub/out");
  file.write("some");
  file.write(" bytes");
  file.commit();
  CHECK(anonymous(watched.calls()) == std::vector<std::string>{"open TEMPORARY", "write TEMPORARY 4",
                                                               "write TEMPORARY 6", "fsync TEMPORARY",
                                                               "rename out", "open sub", "fsync sub"});
  CHECK((watched.flags() & (O_CREAT | O_EXCL | O_CLOEXEC)) == (O_CREAT | O_EXCL | O_CLOEXEC));
}

TEST_CASE("a file in the folder that the program runs in") {
  const temporary_folder folder;
  const auto before = std::filesystem::current_path();
  std::filesystem::current_path(folder.path());
  {
    const script watched;
    atomic_file file("out");
    file.commit();
    CHECK(watched.calls().back() == "fsync .");
  }
  std::filesystem::current_path(before);
  CHECK(names_in(folder.path()) == std::multiset<std::string>{"out"});
}

TEST_CASE("a file that cannot be read: why") {
  const temporary_folder folder;
  write_bytes(folder / "in", "bytes");
  const auto reading = [&](const std::vector<rule>& rules) {
    const script rule_of(rules);
    return message_of([&] { const mapped_file map(folder / "in"); });
  };
  CHECK(reading({{"open", 1, act::fail, EINTR}}) == "");
  CHECK(contains(reading({{"open", 1, act::fail, EACCES}}), "in: cannot be opened: Permission denied"));
  CHECK(contains(reading({{"mmap", 1, act::fail, ENOMEM}}), "in: cannot be mapped: Cannot allocate memory"));
  REQUIRE(::mkfifo((folder / "pipe").c_str(), 0600) == 0);  // and nobody writes into it
  CHECK(contains(message_of([&] { const mapped_file map(folder / "pipe"); }), "pipe: is not a regular file"));
}

TEST_CASE("writes that fall short and calls that signals interrupt are gone on with") {
  CHECK(replacing({}) == "");
  CHECK(replacing({{"write", 0, act::shorten, 1}}) == "");
  CHECK(replacing({{"write", 0, act::shorten, 5}}) == "");
  for (const char* call : {"open", "write", "fsync"}) {
    CAPTURE(call);
    CHECK(replacing({{call, 1, act::fail, EINTR}}) == "");
    CHECK(replacing({{call, 1, act::fail, EINTR}, {call, 2, act::fail, EINTR}}) == "");
  }
  CHECK(replacing({{"write", 1, act::shorten, 2}, {"write", 2, act::fail, EINTR}}) == "");
}

TEST_CASE("what fails is said, and leaves the old file") {
  CHECK(contains(replacing({{"open", 1, act::fail, EACCES}}), "out: cannot be written: Permission denied"));
  CHECK(contains(replacing({{"write", 1, act::fail, ENOSPC}}), "out: cannot be written: No space left"));
  CHECK(contains(replacing({{"write", 1, act::shorten, 3}, {"write", 2, act::fail, ENOSPC}}),
                 "out: cannot be written: No space left"));
  CHECK(contains(replacing({{"write", 2, act::fail, EIO}, {"write", 1, act::shorten, 3}}),
                 "Input/output error"));
  CHECK(
      contains(replacing({{"write", 1, act::shorten, 0}}), "out: cannot be written: the file takes no more"));
  CHECK(contains(replacing({{"fsync", 1, act::fail, EIO}}), "out: cannot be written: Input/output error"));
  CHECK(contains(replacing({{"fsync", 1, act::fail, ENOSPC}}), "out: cannot be written: No space left"));
  CHECK(contains(replacing({{"rename", 1, act::fail, EXDEV}}),
                 "out: cannot be put in place: Invalid cross-device"));
}

TEST_CASE("what some file systems cannot do is no failure") {
  CHECK(replacing({{"fsync", 1, act::fail, EINVAL}}) == "");
  CHECK(replacing({{"fsync", 2, act::fail, EIO}}) ==
        "");  // of the folder, where the file is in place already
  CHECK(replacing({{"open", 2, act::fail, EACCES}}) == "");  // a folder that may be written to and not read
}

TEST_CASE("a temporary name that is taken stays its owner's") {
  const temporary_folder folder;
  {
    const script planted({{"open", 1, act::plant}});
    atomic_file file(folder / "out");
    file.write(new_text);
    file.commit();
    CHECK(planted.calls().size() == 7);
  }
  CHECK(names_in(folder.path()) == std::multiset<std::string>{".tmp", "out"});
  CHECK(read_bytes(folder / "out") == new_text);
  for (const auto& entry : std::filesystem::directory_iterator(folder.path())) {
    if (entry.path().filename() != "out") {
      CHECK(read_bytes(entry.path()) == "someone else's");
    }
  }
  const script taken({{"open", 0, act::fail, EEXIST}});
  CHECK(contains(message_of([&] { atomic_file(folder / "none"); }), "none: cannot be written: File exists"));
  CHECK(taken.calls().size() == 16);
}

TEST_CASE("a file or folder has the mode that the umask gives it") {
  const temporary_folder folder;
  for (const unsigned mask : {0022U, 0077U, 0000U}) {
    const auto before = ::umask(static_cast<mode_t>(mask));
    atomic_file file(folder / "out");
    file.commit();
    ::umask(before);
    const auto mode = std::filesystem::status(folder / "out").permissions();
    CHECK(static_cast<unsigned>(mode) == (0666U & ~mask));
    const std::string name = "folder" + std::to_string(mask);
    ::umask(static_cast<mode_t>(mask));
    atomic_folder(folder / name).commit();
    ::umask(before);
    const auto of_folder = std::filesystem::status(folder / name).permissions();
    CHECK(static_cast<unsigned>(of_folder) == (0777U & ~mask));
  }
}

TEST_CASE("more bytes than one write(2) takes") {
  const temporary_folder folder;
  const std::vector<std::byte> bytes((std::size_t{1} << 26U) + 1);
  const script watched({{"write", 0, act::swallow}});
  atomic_file file(folder / "out");
  file.write(bytes);
  file.write("");
  CHECK(anonymous(watched.calls()) ==
        std::vector<std::string>{"open TEMPORARY", "write TEMPORARY 67108864", "write TEMPORARY 1"});
}

TEST_CASE("killed at any call: the old file or the new one, and no shard too many") {
  const temporary_folder folder;
  const auto target = folder / "out.safetensors";
  const std::vector<float> elements(6, 1.5F);
  const auto write = [&](const char* name) {
    const std::vector<tensor_source> sources{make_tensor_source<float>(name, {6}, elements)};
    write_safetensors(target, sources);
  };
  const auto prepare = [&] {
    for (const auto& entry : std::filesystem::directory_iterator(folder.path())) {
      std::filesystem::remove(entry.path());
    }
    write("old");
  };
  int left_over = 0;
  const auto check = [&] {
    const checkpoint model(folder.path());  // reads no temporary file, which may be cut short anywhere
    REQUIRE(model.shards().size() == 1);
    REQUIRE(model.tensors().size() == 1);
    CHECK((model.find("old") != nullptr || model.find("new") != nullptr));
    CHECK(model.tensors()[0]->data<float>()[5] == 1.5F);
    auto names = names_in(folder.path());
    left_over += static_cast<int>(names.erase(".tmp"));
    CHECK(names == std::multiset<std::string>{"out.safetensors"});
  };
  kill_everywhere(prepare, [&] { write("new"); }, check);
  CHECK(left_over > 0);
}

TEST_CASE("a folder, killed at any call: it is whole or not there") {
  const temporary_folder folder;
  const auto prepare = [&] {
    for (const auto& entry : std::filesystem::directory_iterator(folder.path())) {
      std::filesystem::remove_all(entry.path());
    }
  };
  const auto write = [&] {
    atomic_folder out(folder / "out");
    for (const char* name : {"1", "2"}) {
      atomic_file file(out.add(name));
      file.write(new_text);
      file.commit();
    }
    out.commit();
  };
  kill_everywhere(prepare, write, [&] {
    auto names = names_in(folder.path());
    names.erase(".tmp");
    if (names.contains("out")) {
      CHECK(names_in(folder / "out") == std::multiset<std::string>{"1", "2"});
      CHECK(read_bytes(folder / "out/2") == new_text);
    }
  });
}

TEST_CASE("a folder appears whole or not at all") {
  const temporary_folder folder;
  const auto fill = [](atomic_folder& out) {
    atomic_file file(out.add("a"));
    file.write("a");
    file.commit();
  };
  SUBCASE("nothing without commit") {
    static_cast<void>(atomic_folder(folder / "out").add("x"));
    {
      atomic_folder out(folder / "out");
      fill(out);
      CHECK(names_in(folder.path()) == std::multiset<std::string>{".tmp"});
    }
    CHECK(folder.entries() == 0);
  }
  SUBCASE("all with it, the name last, synced") {
    const script watched;
    atomic_folder out(folder / "out/");
    fill(out);
    out.commit();
    CHECK(names_in(folder.path()) == std::multiset<std::string>{"out"});
    CHECK(read_bytes(folder / "out/a") == "a");
    const auto& calls = watched.calls();
    REQUIRE(calls.size() > 3);
    CHECK(calls[calls.size() - 3] == "rename out");
    CHECK(calls.back() == "fsync " + folder.path().filename().string());
  }
  SUBCASE("a name that is taken, a place that is none, a rename that fails") {
    std::filesystem::create_symlink("nowhere", folder / "link");
    write_bytes(folder / "file", "");
    CHECK(contains(message_of([&] { atomic_folder(folder / "link"); }),
                   "link: exists; name a folder that does not"));
    CHECK(contains(message_of([&] { atomic_folder(folder / "file"); }), "file: exists"));
    std::filesystem::create_directory(folder / "empty");
    CHECK(contains(message_of([&] { atomic_folder(folder / "empty"); }), "empty: exists"));
    CHECK(contains(message_of([&] { atomic_folder(folder / "empty/"); }), "empty: exists"));
    CHECK(contains(message_of([&] { atomic_folder(folder / "no/out"); }),
                   "no/out: cannot be made: No such file"));
    const auto said = message_of([&] {
      atomic_folder out(folder / "out");
      fill(out);
      const script failing({{"rename", 1, act::fail, EACCES}});
      out.commit();
    });
    CHECK(contains(said, "out: cannot be put in place: Permission denied"));
    CHECK(folder.entries() == 3);
  }
}

TEST_CASE("a program that a signal ends can remove what it was writing") {
  const temporary_folder folder;
  write_bytes(folder / "out", old_text);
  const int status = in_child({}, [&] {
    for (int i = 0; i < 3; ++i) {
      atomic_file done(folder / ("done" + std::to_string(i)));
      done.commit();
      atomic_file given_up(folder / "given_up");
    }
    atomic_file one(folder / "out");
    atomic_file other(folder / "other");
    atomic_folder whole(folder / "whole");
    atomic_file inside(whole.add("a"));
    inside.commit();
    atomic_file half(whole.add("b"));
    half.write(new_text);
    errno = ERANGE;
    remove_unfinished();
    ::_exit(errno == ERANGE ? 7 : 8);
  });
  CHECK((WIFEXITED(status) && WEXITSTATUS(status) == 7));
  CHECK(names_in(folder.path()) == std::multiset<std::string>{"done0", "done1", "done2", "out"});
  CHECK(read_bytes(folder / "out") == old_text);
}

TEST_CASE("names of files in writing, from many threads") {
  const temporary_folder folder;
  const auto write = [&](int thread) {
    for (int i = 0; i < 50; ++i) {
      atomic_file file(folder / std::to_string(thread));
      file.write(std::to_string(i));
      file.commit();
    }
  };
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back(write, t);
  }
  for (auto& thread : threads) {
    thread.join();
  }
  CHECK(names_in(folder.path()) == std::multiset<std::string>{"0", "1", "2", "3"});
  int places = 0;
  for (auto* slot = io::unfinished_slots.load(); slot != nullptr; slot = slot->next) {
    ++places;
    CHECK(slot->name == nullptr);
  }
  CHECK(places <= 16);  // they are reused
}

TEST_CASE("bytes from a file that was cut short meanwhile: an error that names it") {
  const temporary_folder folder;
  write_bytes(folder / "source", std::string(100000, 'x'));
  const mapped_file source(folder / "source");
  std::filesystem::resize_file(folder / "source", 0);
  const auto said = message_of([&] {
    atomic_file file(folder / "out");
    file.write(source.bytes());
  });
  CHECK(contains(said, "out: cannot be written: its bytes come from "));
  CHECK(contains(said, "/source, which was cut short meanwhile"));
  CHECK(names_in(folder.path()) == std::multiset<std::string>{"source"});
}

TEST_CASE("an address in a mapped file says which file it is") {
  const temporary_folder folder;
  const std::string strange = "a b - \x1b[31m\x7f\xc2\x9b";
  for (const auto& name : {std::string("first"), strange}) {
    write_bytes(folder / name, std::string(10000, 'x'));
  }
  const mapped_file first(folder / "first");
  const mapped_file second(folder / strange);
  const auto name_at = [](const void* address, std::size_t room = 4096) {
    std::string name(room, '\0');
    name.resize(file_mapped_at(address, name));
    return name;
  };
  const std::string where = std::filesystem::canonical(folder.path()).string();
  CHECK(name_at(first.bytes().data()) == where + "/first");
  CHECK(name_at(first.bytes().data() + 9999) == where + "/first");
  CHECK(name_at(second.bytes().data() + 5000) == where + "/a b - ?[31m?\xc2?");
  CHECK(name_at(first.bytes().data(), 3) == where.substr(0, 3));
  const int local = 0;
  CHECK(name_at(first.bytes().data() + 3 * ::sysconf(_SC_PAGESIZE)) != where + "/first");
  CHECK(name_at(first.bytes().data() - 1) != where + "/first");
  CHECK(name_at(&local) == "");
  CHECK(name_at(nullptr) == "");
  const void* gone = nullptr;
  {
    const mapped_file third(folder / "first");
    gone = third.bytes().data();
  }
  CHECK(name_at(gone) != where + "/first");
}

}  // namespace test_writing
