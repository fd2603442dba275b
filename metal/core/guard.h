// What throws here is caught here: neither callers of the C interface nor threads may see an exception.
#pragma once
#include <cstdio>
#include <exception>
#include <new>
#include <system_error>
#include <utility>

namespace rlv {

// A handler's exception in one line, "WHAT: where: REMEDY".
class Caught {
 public:
  explicit Caught(const char* where) noexcept {
    try {
      throw;
    } catch (const std::bad_alloc&) {
      write("out of memory", where, "lower --batch_size or --micro_batch_tokens, or end other programs");
    } catch (const std::system_error& e) {
      write(e.what(), where, "set RLV_THREADS to fewer, or allow more processes (ulimit -u)");
    } catch (const std::exception& e) {
      write(e.what(), where, "this is a defect of rlv, please report it");
    } catch (...) {
      write("an unknown exception", where, "this is a defect of rlv, please report it");
    }
  }
  const char* text() const noexcept { return text_; }

 private:
  void write(const char* what, const char* where, const char* remedy) noexcept {
    std::snprintf(text_, sizeof text_, "%s: %s: %s", what, where, remedy);
  }
  char text_[512];
};

// f(), or `otherwise` when it throws; then tell(text) says why.
template <class R, class Tell, class F>
R guarded(const char* where, R otherwise, Tell&& tell, F&& f) noexcept {
  try {
    return f();
  } catch (...) {
    tell(Caught(where).text());
    return otherwise;
  }
}

// Lives from before main until the process is gone, and takes no memory from the heap: a program that ends
// must not wait for what it holds.
template <class T>
union Forever {
  T value;
  constexpr Forever() : value() {}
  ~Forever() {}
  T& operator*() { return value; }
  T* operator->() { return &value; }
};

}  // namespace rlv
