#include "lines_file.hpp"

#include "run_header.hpp"

#include <mpi_router/io/file_error.hpp>
#include <mpi_router/io/mapped_file.hpp>

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>

#include <cerrno>

namespace verify {

namespace {

using json = nlohmann::ordered_json;
using mpi_router::detail::last_os_error;
using mpi_router::detail::uninterrupted;
using mpi_router::io::file_failure;

}  // namespace

lines_file::lines_file(std::filesystem::path path, const json& header, bool resume) : path_(std::move(path)) {
  open(resume);
  read(header);
  if (length_ == 0) {
    write(header.dump());
  }
}

void lines_file::open(bool resume) {
  const int flags = O_RDWR | O_CREAT | O_APPEND | O_CLOEXEC | O_NONBLOCK | (resume ? 0 : O_EXCL);
  fd_ =
      mpi_router::detail::file_descriptor(uninterrupted([&] { return ::open(path_.c_str(), flags, 0666); }));
  if (fd_.get() < 0 && errno == EEXIST) {
    file_failure(path_, "exists; with --resume the run goes on from there");
  }
  if (fd_.get() < 0) {
    file_failure(path_, "cannot be written: ", last_os_error());
  }
  struct stat info{};
  if (::fstat(fd_.get(), &info) != 0 || !S_ISREG(info.st_mode)) {
    file_failure(path_, "is not a regular file");
  }
  if (::flock(fd_.get(), LOCK_EX | LOCK_NB) != 0 && errno == EWOULDBLOCK) {
    file_failure(path_, "is being written by another run");
  }
}

void lines_file::read(const json& header) {
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
  if (end < text.size() && ::ftruncate(fd_.get(), static_cast<off_t>(end)) != 0) {
    file_failure(path_, "cannot be written: ", last_os_error());
  }
}

void lines_file::append(const placed_result& one) { write(to_line(one)); }

void lines_file::write(const std::string& line) {
  const std::string whole = line + "\n";
  for (std::string_view rest = whole; !rest.empty();) {
    const auto written = uninterrupted([&] { return ::write(fd_.get(), rest.data(), rest.size()); });
    if (written <= 0) {
      const std::string reason = written < 0 ? last_os_error() : "the file takes no more bytes";
      static_cast<void>(
          !::ftruncate(fd_.get(), static_cast<off_t>(length_)));  // else --resume drops the rest
      file_failure(path_, "cannot be written: ", reason, "; what is in it stays, for --resume");
    }
    rest.remove_prefix(static_cast<std::size_t>(written));
  }
  length_ += whole.size();
}

}  // namespace verify
