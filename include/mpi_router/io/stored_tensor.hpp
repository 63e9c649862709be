// One tensor of a mapped file: what it is called, what it is made of, and where its bytes lie.
#pragma once

#include <mpi_router/io/dtype.hpp>
#include <mpi_router/io/file_error.hpp>

#include <algorithm>
#include <cstring>
#include <functional>
#include <numeric>
#include <span>
#include <utility>
#include <vector>

MPIROUTER_BEGIN

/// "[8, 128, 256]", for messages: after `most` extents there are dots.
[[nodiscard]] inline std::string to_string(std::span<const index_t> shape, std::size_t most = 8) {
  std::string out = "[";
  for (std::size_t i = 0; i < std::min(shape.size(), most); ++i) {
    out += core::concatenate(i == 0 ? "" : ", ", shape[i]);
  }
  return out + (shape.size() > most ? ", ...]" : "]");
}

/// The numbers of a tensor of that shape. An extent of 0 makes it 0 whatever the others are: those of an
/// empty tensor need not have a product that fits.
[[nodiscard]] inline index_t element_count(std::span<const index_t> shape) {
  return std::ranges::find(shape, 0) != shape.end()
             ? 0
             : std::accumulate(shape.begin(), shape.end(), index_t{1}, std::multiplies<>{});
}

namespace detail {

/// The longest header of a safetensors file, in bytes: the format's own limit.
inline constexpr std::uint64_t longest_header = 100'000'000;

/// Bytes of a tensor; nothing if its elements, multiplied from the first axis on as safetensors' own library
/// does, or their bits do not fit in 64 bits, or if they do not fill whole bytes.
[[nodiscard]] inline std::optional<std::uint64_t> byte_size(dtype type,
                                                            std::span<const index_t> shape) noexcept {
  std::uint64_t bits = 1;
  for (const index_t extent : shape) {
    if (extent < 0 || __builtin_mul_overflow(bits, static_cast<std::uint64_t>(extent), &bits)) {
      return std::nullopt;
    }
  }
  if (__builtin_mul_overflow(bits, std::uint64_t{bits_of(type)}, &bits) || bits % 8 != 0) {
    return std::nullopt;
  }
  return bits / 8;
}

}  // namespace detail

/// The elements of a tensor in memory, aligned for T: the mapped bytes themselves where they are aligned,
/// otherwise a copy. Movable; data() keeps its address when it moves.
template <Storable T>
class tensor_data {
 public:
  tensor_data() = default;
  explicit tensor_data(std::span<const T> mapped) : view_(mapped) {}
  explicit tensor_data(std::vector<T> copy) : copy_(std::move(copy)), view_(copy_) {}
  tensor_data(tensor_data&&) noexcept = default;
  tensor_data& operator=(tensor_data&&) noexcept = default;
  tensor_data(const tensor_data&) = delete;
  tensor_data& operator=(const tensor_data&) = delete;
  ~tensor_data() = default;

  [[nodiscard]] const T* data() const noexcept { return view_.data(); }
  [[nodiscard]] std::size_t size() const noexcept { return view_.size(); }
  [[nodiscard]] bool is_copy() const noexcept { return !copy_.empty(); }

 private:
  std::vector<T> copy_;
  std::span<const T> view_;
};

/// A tensor of a safetensors_file, which it must not outlive. Its size agrees with its shape and type, and
/// its bytes lie inside the file: the reader has checked that.
class stored_tensor {
 public:
  stored_tensor(const std::filesystem::path& file, std::string name, dtype type, std::vector<index_t> shape,
                std::span<const std::byte> bytes)
      : file_(&file), name_(std::move(name)), type_(type), shape_(std::move(shape)), bytes_(bytes) {}

  [[nodiscard]] const std::filesystem::path& file() const noexcept { return *file_; }
  [[nodiscard]] const std::string& name() const noexcept { return name_; }
  [[nodiscard]] dtype type() const noexcept { return type_; }
  /// Extents, slowest axis first; empty for a single number.
  [[nodiscard]] std::span<const index_t> shape() const noexcept { return shape_; }
  [[nodiscard]] index_t rank() const noexcept { return static_cast<index_t>(shape_.size()); }
  [[nodiscard]] std::span<const std::byte> bytes() const noexcept { return bytes_; }

  /// Whether the elements start at an address that T may be read from. The format promises none.
  template <Storable T>
  [[nodiscard]] bool is_aligned() const noexcept {
    return reinterpret_cast<std::uintptr_t>(bytes_.data()) % alignof(T) == 0;
  }

  /// The elements in place, without a copy: pass it to row_major, experts_nfd and the like. Throws file_error
  /// if T is not the stored type, or if the file puts the tensor at an address that T must not be read from:
  /// load() reads that one too.
  template <Storable T>
  [[nodiscard]] const T* data() const {
    check_type<T>();
    if (!is_aligned<T>()) {
      fail("its bytes start at an address that is no multiple of ", alignof(T), "; load() copies them");
    }
    return reinterpret_cast<const T*>(bytes_.data());
  }

  /// The elements, in place where their address allows it and copied otherwise. Throws file_error if T is not
  /// the stored type.
  template <Storable T>
  [[nodiscard]] tensor_data<T> load() const {
    check_type<T>();
    const std::size_t count = bytes_.size() / sizeof(T);
    if (is_aligned<T>()) {
      return tensor_data<T>(std::span(reinterpret_cast<const T*>(bytes_.data()), count));
    }
    std::vector<T> copy(count);
    if (count != 0) {
      std::memcpy(copy.data(), bytes_.data(), bytes_.size());
    }
    return tensor_data<T>(std::move(copy));
  }

  /// Throws file_error with a message that names the file and this tensor.
  template <class... Parts>
  [[noreturn]] void fail(const Parts&... reason) const {
    io::tensor_failure(*file_, name_, reason...);
  }

 private:
  template <class T>
  void check_type() const {
    if (type_ != dtype_of<T>::value) {
      fail("is stored as ", to_string(type_), " and asked for as ", to_string(dtype_of<T>::value));
    }
  }

  const std::filesystem::path* file_;
  std::string name_;
  dtype type_;
  std::vector<index_t> shape_;
  std::span<const std::byte> bytes_;
};

MPIROUTER_END
