// Texts that cross the C interface.
#pragma once
#include <algorithm>
#include <cstdint>
#include <cstring>
#include <string_view>

namespace rlv {

// Copies what fits, ended by NUL; returns the whole length.
inline uint32_t copy_text(std::string_view text, char* out, uint32_t capacity) {
  if (out && capacity > 0) {
    const size_t n = std::min<size_t>(text.size(), capacity - 1);
    std::memcpy(out, text.data(), n);
    out[n] = 0;
  }
  return uint32_t(text.size());
}

// An error's text in memory of its own: to tell that there is no memory takes none. Cut at its end.
class ErrorText {
 public:
  void set(std::string_view text) noexcept { length_ = std::min(copy_text(text, text_, kBytes), kBytes - 1); }
  void clear() noexcept { length_ = 0; }
  std::string_view view() const noexcept { return {text_, length_}; }

 private:
  static constexpr uint32_t kBytes = 4096;
  char text_[kBytes] = {};
  uint32_t length_ = 0;
};

}  // namespace rlv
