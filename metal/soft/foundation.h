// The classes of Foundation that Metal's API is made of.
#pragma once
#include <string>
#include <utility>
#include <vector>
#include "objc.h"

namespace soft {
namespace foundation {

using UInteger = unsigned long;
using Integer = long;

// UTF-8 inside.
struct String : Object {
  static constexpr const char* kClass = "NSString";

  String() = default;
  explicit String(std::string s) : text(std::move(s)) {}
  String* init_string(const String* other);
  String* init_c_string(const char* s, UInteger encoding);
  String* init_bytes(void* bytes, UInteger length, UInteger encoding, bool free_when_done);

  const char* utf8() const { return text.c_str(); }
  const char* c_string(UInteger encoding) const;
  UInteger length() const;
  unsigned short character(UInteger index) const;
  UInteger length_of_bytes(UInteger encoding) const;
  UInteger maximum_length_of_bytes(UInteger encoding) const;
  bool equals(const Object* other) const;
  bool equals_string(const String* other) const { return other && other->text == text; }
  UInteger hash() const { return std::hash<std::string>()(text); }
  String* appending(const String* other) const;
  Integer compare_without_case(const String* other) const;
  String* description() { return this; }

  std::string text;
};

struct Array : Object {
  static constexpr const char* kClass = "NSArray";

  Array* init_objects(Object* const* values, UInteger count);
  Object* object(UInteger index) const;
  UInteger count() const { return objects.size(); }
  struct Enumerator* enumerator();

  std::vector<Ref<Object>> objects;
};

struct Enumerator : Object {
  static constexpr const char* kClass = "NSEnumerator";

  Object* next();
  Array* rest();

  std::vector<Ref<Object>> objects;
  size_t at = 0;
};

struct Dictionary : Object {
  static constexpr const char* kClass = "NSDictionary";

  Dictionary* init_objects(Object* const* values, Object* const* keys, UInteger count);
  Object* object(const Object* key) const;
  UInteger count() const { return entries.size(); }
  Enumerator* keys() const;

  std::vector<std::pair<Ref<Object>, Ref<Object>>> entries;  // key, value
};

struct Number : Object {
  static constexpr const char* kClass = "NSNumber";

  enum class Kind { kSigned, kUnsigned, kReal, kBool };
  template <class T>
  Number* init(T value);
  template <class T>
  T value() const;
  String* text() const;
  bool equals(const Object* other) const;
  bool equals_number(const Number* other) const;
  Integer compare(const Number* other) const;

  Kind kind = Kind::kSigned;
  int64_t integer = 0;
  uint64_t natural = 0;
  double real = 0;
};

struct Url : Object {
  static constexpr const char* kClass = "NSURL";

  Url* init_file(const String* path);
  Url* init_string(const String* text);
  const char* path() const { return file.c_str(); }

  std::string file;  // a path; empty if it is not the address of a file
};

struct Error : Object {
  static constexpr const char* kClass = "NSError";

  Error* init(String* error_domain, Integer error_code, Dictionary* info);
  String* description();

  Ref<String> domain;
  Integer code = 0;
  Ref<Dictionary> user_info;
};

// All autoreleased.
String* string(std::string text);
Error* error(const char* domain, Integer code, const std::string& description);
Array* array(std::vector<Ref<Object>> objects);

// Writes an error where the caller asked for one, and is what a method that failed returns.
std::nullptr_t fail(Error** out, const char* domain, Integer code, const std::string& description);

inline std::string text_of(const String* s) { return s ? s->text : std::string(); }
// The object as what its class says it is, else null.
template <class T>
const T* as(const Object* object) {
  return object && object->isa == class_of<T>() ? static_cast<const T*>(object) : nullptr;
}

}  // namespace foundation
}  // namespace soft
