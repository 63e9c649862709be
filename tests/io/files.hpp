// Folders that vanish, files of raw bytes, and the message of what was thrown.
#pragma once

#include <mpi_router/io/safetensors.hpp>

#include <doctest/doctest.h>

#include <filesystem>
#include <fstream>
#include <iterator>
#include <random>
#include <stdexcept>
#include <string>

namespace io_test {

class temporary_folder {
 public:
  temporary_folder() {
    std::random_device entropy;
    do {
      path_ = std::filesystem::temp_directory_path() / ("mpi_router_io_" + std::to_string(entropy()));
    } while (!std::filesystem::create_directory(path_));
  }
  temporary_folder(const temporary_folder&) = delete;
  temporary_folder& operator=(const temporary_folder&) = delete;
  ~temporary_folder() {
    std::error_code error;
    std::filesystem::remove_all(path_, error);
  }
  [[nodiscard]] const std::filesystem::path& path() const { return path_; }
  /// Of a name in UTF-8, which that of a std::string need not be on Windows.
  [[nodiscard]] std::filesystem::path operator/(const std::string& name) const {
    return path_ / mpi_router::io::path_named(name);
  }
  [[nodiscard]] std::size_t entries() const {
    return static_cast<std::size_t>(std::distance(std::filesystem::directory_iterator(path_), {}));
  }

 private:
  std::filesystem::path path_;
};

/// A link at `path` to a file beside it or below: a symbolic one, or a hard one on Windows, where those are
/// for administrators.
inline void link_to(const std::filesystem::path& target, const std::filesystem::path& path) {
#ifdef _WIN32
  std::filesystem::create_hard_link(path.parent_path() / target, path);
#else
  std::filesystem::create_symlink(target, path);
#endif
}

inline void write_bytes(const std::filesystem::path& path, const std::string& bytes) {
  std::ofstream out(path, std::ios::binary);
  out << bytes;
  out.close();
  if (!out) {  // on Windows a file that is mapped
    throw std::runtime_error("a test cannot write " + path.string());
  }
}

inline std::string read_bytes(const std::filesystem::path& path) {
  std::ifstream in(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), {}};
}

/// A safetensors file as bytes: the length of the header, the header, the data.
inline std::string raw_file(const std::string& header, const std::string& data = "") {
  const std::uint64_t length = header.size();
  return std::string(reinterpret_cast<const char*>(&length), sizeof length) + header + data;
}

/// The message of the file_error that `action` throws; empty if it throws none.
template <class Action>
std::string message_of(Action&& action) {
  try {
    action();
  } catch (const mpi_router::file_error& error) {
    return error.what();
  }
  return "";
}

inline bool contains(const std::string& text, const std::string& part) {
  return text.find(part) != text.npos;
}

/// What opening a file of these bytes says, one line that begins with its path; empty if they are a valid
/// one.
template <class File>
std::string refusal_of(const std::filesystem::path& path, const std::string& bytes) {
  write_bytes(path, bytes);
  const std::string message = message_of([&] { File file(path); });
  if (!message.empty()) {
    CHECK(message.starts_with(path.string() + ": "));
    CHECK(message.find('\n') == message.npos);
  }
  return message;
}

}  // namespace io_test
