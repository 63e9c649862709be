#include "lines_file.hpp"

#include "run_header.hpp"

#include <mpi_router/io/file_error.hpp>
#include <mpi_router/io/mapped_file.hpp>

#ifndef _WIN32
#include <sys/file.h>
#endif

namespace verify {

namespace {

using json = nlohmann::ordered_json;
using mpi_router::detail::last_os_error;
using mpi_router::detail::raw_descriptor;
using mpi_router::io::file_failure;

// Open to append to, also where the file is there if it may be; whether no other process has it locked, and
// none will while it is open; the end moved to `length`, where what is written next goes.
#ifdef _WIN32
raw_descriptor open_to_append(const std::filesystem::path& path, bool may_be_there) {
  return mpi_router::detail::open_file(path, GENERIC_READ | GENERIC_WRITE,
                                       may_be_there ? OPEN_ALWAYS : CREATE_NEW);
}
bool lock(raw_descriptor fd) {
  OVERLAPPED far_behind{};  // the lock keeps others from the bytes themselves, so it lies where none are
  far_behind.OffsetHigh = 0x7fffffff;
  return ::LockFileEx(fd, LOCKFILE_EXCLUSIVE_LOCK | LOCKFILE_FAIL_IMMEDIATELY, 0, 1, 0, &far_behind) != 0;
}
bool cut(raw_descriptor fd, std::size_t length) {
  LARGE_INTEGER end{};
  end.QuadPart = static_cast<LONGLONG>(length);
  return ::SetFilePointerEx(fd, end, nullptr, FILE_BEGIN) != 0 && ::SetEndOfFile(fd) != 0;
}
#else
raw_descriptor open_to_append(const std::filesystem::path& path, bool may_be_there) {
  const int flags = O_RDWR | O_CREAT | O_APPEND | O_CLOEXEC | O_NONBLOCK | (may_be_there ? 0 : O_EXCL);
  return mpi_router::detail::uninterrupted([&] { return ::open(path.c_str(), flags, 0666); });
}
bool lock(raw_descriptor fd) { return ::flock(fd, LOCK_EX | LOCK_NB) == 0 || errno != EWOULDBLOCK; }
bool cut(raw_descriptor fd, std::size_t length) { return ::ftruncate(fd, static_cast<off_t>(length)) == 0; }
#endif

}  // namespace

lines_file::lines_file(std::filesystem::path path, const json& header, bool resume) : path_(std::move(path)) {
  open(resume);
  const bool has_rest = read(header);
  if (has_rest && !cut(fd_.get(), length_)) {  // behind the last whole line, now that nothing is mapped
    file_failure(path_, "cannot be written: ", last_os_error());
  }
  if (length_ == 0) {
    write(header.dump());
  }
}

void lines_file::open(bool resume) {
  fd_ = mpi_router::detail::file_descriptor(open_to_append(path_, resume));
  if (!fd_.is_open() && mpi_router::detail::name_was_taken()) {
    file_failure(path_, "exists; with --resume the run goes on from there");
  }
  if (!fd_.is_open()) {
    file_failure(path_, "cannot be written: ", last_os_error());
  }
  if (!mpi_router::detail::examine(fd_.get()).regular) {
    file_failure(path_, "is not a regular file");
  }
  if (!lock(fd_.get())) {
    file_failure(path_, "is being written by another run");
  }
}

bool lines_file::read(const json& header) {
  const mpi_router::mapped_file file(path_);
  const std::string_view text(reinterpret_cast<const char*>(file.bytes().data()), file.bytes().size());
  const auto length_of_line = [&text](std::size_t begin) { return text.find('\n', begin) - begin; };
  const auto end = text.rfind('\n') + 1;  // 0 where there is no whole line
  const auto first = text.substr(0, end == 0 ? text.size() : length_of_line(0));
  if (end == 0 && !header.dump().starts_with(first)) {
    file_failure(path_, "is no file of --lines");
  }
  if (end > 0) {
    const auto was = json::parse(first, nullptr, false);
    if (!was.is_object() || !was.contains("verify_checkpoint")) {
      file_failure(path_, "is no file of --lines");
    }
    if (const auto what = difference(was, header); !what.empty()) {
      file_failure(path_, "is of another run and cannot be resumed by this: ", what);
    }
  }
  std::size_t number = 1;
  for (auto begin = first.size() + 1; begin < end; begin += length_of_line(begin) + 1) {
    auto one = from_line(text.substr(begin, length_of_line(begin)));
    ++number;
    if (!one) {
      file_failure(path_, "line ", number, " is damaged");
    }
    found_.push_back(std::move(*one));
  }
  length_ = end;
  return end < text.size();
}

void lines_file::append(const placed_result& one) { write(to_line(one)); }

void lines_file::write(const std::string& line) {
  const std::string whole = line + "\n";
  for (std::string_view rest = whole; !rest.empty();) {
    const auto written = mpi_router::detail::write_some(fd_.get(), std::as_bytes(std::span(rest)));
    if (written <= 0) {
      const std::string reason = written < 0 ? last_os_error() : "the file takes no more bytes";
      static_cast<void>(cut(fd_.get(), length_));  // else --resume drops the rest
      file_failure(path_, "cannot be written: ", reason, "; what is in it stays, for --resume");
    }
    rest.remove_prefix(static_cast<std::size_t>(written));
  }
  length_ += whole.size();
}

}  // namespace verify
