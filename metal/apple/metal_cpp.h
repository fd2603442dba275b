// The only door to metal-cpp.
#pragma once
#if defined(__clang__)
#pragma clang diagnostic push
#pragma clang diagnostic ignored "-Weverything"
#endif
#include <Foundation/Foundation.hpp>
#include <Metal/Metal.hpp>
#if defined(__clang__)
#pragma clang diagnostic pop
#endif
#include <string>

namespace rlv {
namespace metal {

using NS::RetainPtr;
using NS::SharedPtr;
using NS::TransferPtr;

// Autoreleased objects made in this scope end with it.
class Pool {
 public:
  Pool() : pool_(NS::AutoreleasePool::alloc()->init()) {}
  ~Pool() { pool_->release(); }
  Pool(const Pool&) = delete;
  Pool& operator=(const Pool&) = delete;

 private:
  NS::AutoreleasePool* pool_;
};

inline NS::String* string(const std::string& s) {
  return NS::String::string(s.c_str(), NS::UTF8StringEncoding);
}

inline std::string text(const NS::Error* error) {
  const NS::String* s = error ? error->localizedDescription() : nullptr;
  return s ? s->utf8String() : "no description";
}

}  // namespace metal
}  // namespace rlv
