// Arena is the bump allocator behind a parsed template and behind one rendering: everything made in
// it lives until the arena dies, nothing is destroyed singly, so only trivially destructible types
// go in. It counts its bytes against a limit, which bounds the memory of an untrusted template.
// Thread rule: one thread at a time. Ownership: the arena owns every byte it hands out.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <new>
#include <span>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

namespace morphserve::jinja {

class Arena {
 public:
  explicit Arena(int64_t bytes_max) : bytes_left_(bytes_max) {}
  Arena(const Arena&) = delete;
  Arena& operator=(const Arena&) = delete;

  // Null when the limit is reached; the arena stays usable for smaller requests.
  void* Allocate(size_t bytes, size_t alignment);

  // Null at the limit.
  template <typename T, typename... Args>
  T* New(Args&&... args) {
    static_assert(std::is_trivially_destructible_v<T>);
    void* place = Allocate(sizeof(T), alignof(T));
    return place == nullptr ? nullptr : new (place) T(std::forward<Args>(args)...);
  }

  // Value-initialised; null at the limit. A count of 0 yields a valid pointer to nothing.
  template <typename T>
  T* NewArray(size_t count) {
    static_assert(std::is_trivially_destructible_v<T>);
    if (count > kCountMax / sizeof(T)) return nullptr;
    T* place = static_cast<T*>(Allocate(count * sizeof(T), alignof(T)));
    if (place != nullptr) {
      for (size_t i = 0; i < count; ++i) new (place + i) T();
    }
    return place;
  }

  // Copies `count` values; null at the limit.
  template <typename T>
  T* CopyArray(const T* source, size_t count) {
    T* place = NewArray<T>(count);
    if (place != nullptr) {
      for (size_t i = 0; i < count; ++i) place[i] = source[i];
    }
    return place;
  }

  // Bytes of text; they live apart from everything else. Null at the limit.
  char* AllocateText(size_t bytes);

  // Room for `extra` bytes right behind the text that ends at `end`, when that was the latest one
  // allocated: true makes [end, end + extra) part of it. This lets `a + b + c` copy each byte once.
  bool ExtendText(const char* end, size_t extra);

 private:
  static constexpr size_t kCountMax = size_t{1} << 40;
  static constexpr size_t kChunkBytes = 16 * 1024;

  struct Bump {
    char* begin = nullptr;
    char* cursor = nullptr;
    char* end = nullptr;
  };
  void* AllocateIn(Bump& bump, size_t bytes, size_t alignment);

  Bump objects_;
  Bump text_;
  int64_t bytes_left_;
  std::vector<std::unique_ptr<char[]>> chunks_;
};

}  // namespace morphserve::jinja
