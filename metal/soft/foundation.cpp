#include "foundation.h"

#include <strings.h>
#include <sys/sysinfo.h>
#include <unistd.h>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <thread>

extern "C" char** environ;

namespace soft {
namespace foundation {

namespace {

constexpr const char* kDescriptionKey = "NSLocalizedDescription";

// ASCII, UTF-8 and ISO Latin 1 as far as it is ASCII.
bool is_supported(UInteger encoding) { return encoding == 1 || encoding == 4 || encoding == 5; }

void check_encoding(UInteger encoding) {
  if (!is_supported(encoding)) fatal("not implemented: NSStringEncoding " + std::to_string(encoding));
}

// What Foundation counts and indexes strings by.
std::vector<unsigned short> utf16(const std::string& text) {
  std::vector<unsigned short> units;
  for (size_t i = 0; i < text.size();) {
    const unsigned char lead = static_cast<unsigned char>(text[i]);
    const int bytes = lead < 0x80 ? 1 : lead < 0xe0 ? 2 : lead < 0xf0 ? 3 : 4;
    uint32_t code = bytes == 1 ? lead : lead & (0x7f >> bytes);
    for (int k = 1; k < bytes && i + k < text.size(); k++)
      code = code << 6 | (static_cast<unsigned char>(text[i + k]) & 0x3f);
    i += bytes;
    if (code < 0x10000) {
      units.push_back(static_cast<unsigned short>(code));
    } else {
      units.push_back(static_cast<unsigned short>(0xd800 + ((code - 0x10000) >> 10)));
      units.push_back(static_cast<unsigned short>(0xdc00 + (code & 0x3ff)));
    }
  }
  return units;
}

bool are_equal(const Object* a, const Object* b) {
  if (a == b) return true;
  if (const String* s = as<String>(a)) return s->equals(b);
  if (const Number* n = as<Number>(a)) return n->equals(b);
  return false;
}

std::vector<Ref<Object>> retained(Object* const* values, UInteger count) {
  std::vector<Ref<Object>> objects;
  for (UInteger i = 0; i < count; i++) {
    if (!values[i]) misuse("a collection cannot hold nil (object " + std::to_string(i) + ")");
    if (values[i]) objects.emplace_back(values[i]);
  }
  return objects;
}

}  // namespace

// ---- NSString ----

String* String::init_string(const String* other) {
  text = text_of(other);
  return this;
}

String* String::init_c_string(const char* s, UInteger encoding) {
  check_encoding(encoding);
  if (!s) misuse("NSString made from a null pointer");
  text = s ? s : "";
  return this;
}

String* String::init_bytes(void* bytes, UInteger length, UInteger encoding, bool free_when_done) {
  check_encoding(encoding);
  text.assign(static_cast<const char*>(bytes), length);
  if (free_when_done) std::free(bytes);
  return this;
}

const char* String::c_string(UInteger encoding) const {
  check_encoding(encoding);
  return text.c_str();
}

UInteger String::length() const { return utf16(text).size(); }

unsigned short String::character(UInteger index) const {
  const auto units = utf16(text);
  if (index < units.size()) return units[index];
  misuse("-[NSString characterAtIndex:]: index " + std::to_string(index) + " is past the end");
  return 0;
}

UInteger String::length_of_bytes(UInteger encoding) const {
  check_encoding(encoding);
  return text.size();
}

UInteger String::maximum_length_of_bytes(UInteger encoding) const {
  check_encoding(encoding);
  return 3 * length();
}

bool String::equals(const Object* other) const { return equals_string(as<String>(other)); }

String* String::appending(const String* other) const { return string(text + text_of(other)); }

Integer String::compare_without_case(const String* other) const {
  const int order = strcasecmp(text.c_str(), text_of(other).c_str());
  return order < 0 ? -1 : order > 0;
}

String* string(std::string text) { return autoreleased(make<String>(std::move(text))); }

static String* empty_string() { return string(""); }
static String* string_of_string(const String* other) { return string(text_of(other)); }
static String* string_of_c_string(const char* s, UInteger encoding) {
  return autoreleased(make<String>()->init_c_string(s, encoding));
}

// ---- NSArray, NSEnumerator, NSDictionary ----

Array* Array::init_objects(Object* const* values, UInteger count) {
  objects = retained(values, count);
  return this;
}

Object* Array::object(UInteger index) const {
  if (index < objects.size()) return objects[index].get();
  misuse("-[NSArray objectAtIndex:]: index " + std::to_string(index) + " of " +
         std::to_string(objects.size()));
  return nullptr;
}

static Enumerator* enumerate(std::vector<Ref<Object>> objects) {
  Enumerator* enumerator = make<Enumerator>();
  enumerator->objects = std::move(objects);
  return autoreleased(enumerator);
}

Enumerator* Array::enumerator() { return enumerate(objects); }

Object* Enumerator::next() { return at < objects.size() ? objects[at++].get() : nullptr; }

Array* Enumerator::rest() {
  std::vector<Ref<Object>> left(objects.begin() + at, objects.end());
  at = objects.size();
  return array(std::move(left));
}

Array* array(std::vector<Ref<Object>> objects) {
  Array* made = make<Array>();
  made->objects = std::move(objects);
  return autoreleased(made);
}

static Array* empty_array() { return array({}); }
static Array* array_of_object(Object* object) { return array(retained(&object, 1)); }
static Array* array_of_objects(Object* const* objects, UInteger count) {
  return array(retained(objects, count));
}

Dictionary* Dictionary::init_objects(Object* const* values, Object* const* keys, UInteger count) {
  const auto all_values = retained(values, count), all_keys = retained(keys, count);
  for (size_t i = 0; i < all_values.size() && i < all_keys.size(); i++)
    if (!object(all_keys[i].get())) entries.emplace_back(all_keys[i], all_values[i]);
  return this;
}

Object* Dictionary::object(const Object* key) const {
  for (const auto& [its_key, value] : entries)
    if (are_equal(its_key.get(), key)) return value.get();
  return nullptr;
}

Enumerator* Dictionary::keys() const {
  std::vector<Ref<Object>> all;
  for (const auto& [key, value] : entries) all.push_back(key);
  return enumerate(std::move(all));
}

static Dictionary* empty_dictionary() { return autoreleased(make<Dictionary>()); }
static Dictionary* dictionary_of_object(Object* value, Object* key) {
  return autoreleased(make<Dictionary>()->init_objects(&value, &key, 1));
}
static Dictionary* dictionary_of_objects(Object* const* values, Object* const* keys, UInteger count) {
  return autoreleased(make<Dictionary>()->init_objects(values, keys, count));
}

// ---- NSNumber ----

template <class T>
Number* Number::init(T value) {
  kind = std::is_same<T, bool>::value       ? Kind::kBool
         : std::is_floating_point<T>::value ? Kind::kReal
         : std::is_unsigned<T>::value       ? Kind::kUnsigned
                                            : Kind::kSigned;
  real = static_cast<double>(value);
  integer = static_cast<int64_t>(value);
  natural = kind == Kind::kReal ? static_cast<uint64_t>(integer) : static_cast<uint64_t>(value);
  return this;
}

template <class T>
T Number::value() const {
  if (std::is_same<T, bool>::value) return real != 0;
  if (std::is_floating_point<T>::value || kind == Kind::kReal) return static_cast<T>(real);
  return static_cast<T>(std::is_unsigned<T>::value ? natural : static_cast<uint64_t>(integer));
}

String* Number::text() const {
  switch (kind) {
    case Kind::kBool:
    case Kind::kSigned:
      return string(std::to_string(integer));
    case Kind::kUnsigned:
      return string(std::to_string(natural));
    case Kind::kReal:
      break;
  }
  char digits[40];
  std::snprintf(digits, sizeof digits, "%.17g", real);
  return string(digits);
}

bool Number::equals(const Object* other) const { return equals_number(as<Number>(other)); }

bool Number::equals_number(const Number* other) const {
  return other && real == other->real && natural == other->natural;
}

Integer Number::compare(const Number* other) const { return real < other->real ? -1 : real > other->real; }

template <class T>
static Number* number(T value) {
  return autoreleased(make<Number>()->init(value));
}

template <class T>
static void add_number_methods(Methods<Number>& methods, const std::string& name, const std::string& reader) {
  methods.on_class<&number<T>>(("numberWith" + name + ":").c_str());
  methods.on<&Number::init<T>>(("initWith" + name + ":").c_str());
  methods.on<&Number::value<T>>((reader + "Value").c_str());
}

// ---- NSURL ----

Url* Url::init_file(const String* path) {
  file = text_of(path);
  return this;
}

Url* Url::init_string(const String* text) {
  const std::string scheme = "file://", s = text_of(text);
  file = s.compare(0, scheme.size(), scheme) == 0 ? s.substr(scheme.size()) : "";
  return this;
}

static Url* url_of_file(const String* path) { return autoreleased(make<Url>()->init_file(path)); }

// ---- NSError ----

Error* Error::init(String* error_domain, Integer error_code, Dictionary* info) {
  domain = error_domain;
  code = error_code;
  user_info = info;
  return this;
}

String* Error::description() {
  if (user_info) {
    const Ref<String> key = Ref<String>::adopt(make<String>(kDescriptionKey));
    if (Object* text = user_info->object(key.get())) return static_cast<String*>(text);
  }
  return string("The operation couldn't be completed. (" + text_of(domain.get()) + " error " +
                std::to_string(code) + ".)");
}

static Error* error_of_parts(String* domain, Integer code, Dictionary* info) {
  return autoreleased(make<Error>()->init(domain, code, info));
}

Error* error(const char* domain, Integer code, const std::string& description) {
  const auto name = Ref<String>::adopt(make<String>(domain));
  const auto key = Ref<String>::adopt(make<String>(kDescriptionKey));
  const auto text = Ref<String>::adopt(make<String>(description));
  auto info = Ref<Dictionary>::adopt(make<Dictionary>());
  info->entries.emplace_back(Ref<Object>(key.get()), Ref<Object>(text.get()));
  return autoreleased(make<Error>()->init(name.get(), code, info.get()));
}

std::nullptr_t fail(Error** out, const char* domain, Integer code, const std::string& description) {
  if (out) *out = error(domain, code, description);
  return nullptr;
}

// ---- NSProcessInfo: a Mac of the oldest version supported ----

namespace {

struct Version {
  Integer major, minor, patch;
};

constexpr Version kSystem = {14, 0, 0};

struct ProcessInfo : Object {
  static constexpr const char* kClass = "NSProcessInfo";

  Version version() const { return kSystem; }
  String* version_text() const { return string("Version 14.0 (software Metal)"); }
  bool is_at_least(Version v) const {
    if (v.major != kSystem.major) return v.major < kSystem.major;
    if (v.minor != kSystem.minor) return v.minor < kSystem.minor;
    return v.patch <= kSystem.patch;
  }
  UInteger processors() const { return std::max(1u, std::thread::hardware_concurrency()); }
  unsigned long long memory() const {
    return static_cast<unsigned long long>(sysconf(_SC_PHYS_PAGES)) * sysconf(_SC_PAGESIZE);
  }
  double uptime() const {
    struct sysinfo info;
    return sysinfo(&info) == 0 ? static_cast<double>(info.uptime) : 0;
  }
  int process() const { return getpid(); }
  Integer thermal_state() const { return 0; }
  bool no() const { return false; }
  Dictionary* environment() const {
    Dictionary* all = make<Dictionary>();
    for (char** entry = environ; *entry; entry++) {
      const char* equals = std::strchr(*entry, '=');
      if (!equals) continue;
      const auto key = Ref<String>::adopt(make<String>(std::string(*entry, equals - *entry)));
      const auto value = Ref<String>::adopt(make<String>(equals + 1));
      all->entries.emplace_back(Ref<Object>(key.get()), Ref<Object>(value.get()));
    }
    return autoreleased(all);
  }
};

ProcessInfo* process_info() { return autoreleased(make<ProcessInfo>()); }

const bool registered = [] {
  Methods<String>()
      .allocates()
      .copies_by_retaining()
      .on_class<&empty_string>("string")
      .on_class<&string_of_string>("stringWithString:")
      .on_class<&string_of_c_string>("stringWithCString:encoding:")
      .on<&String::init_string>("initWithString:")
      .on<&String::init_c_string>("initWithCString:encoding:")
      .on<&String::init_bytes>("initWithBytesNoCopy:length:encoding:freeWhenDone:")
      .on<&String::utf8>("UTF8String")
      .on<&String::utf8>("fileSystemRepresentation")
      .on<&String::c_string>("cStringUsingEncoding:")
      .on<&String::length>("length")
      .on<&String::character>("characterAtIndex:")
      .on<&String::length_of_bytes>("lengthOfBytesUsingEncoding:")
      .on<&String::maximum_length_of_bytes>("maximumLengthOfBytesUsingEncoding:")
      .on<&String::equals>("isEqual:")
      .on<&String::equals_string>("isEqualToString:")
      .on<&String::hash>("hash")
      .on<&String::appending>("stringByAppendingString:")
      .on<&String::compare_without_case>("caseInsensitiveCompare:")
      .on<&String::description>("description")
      .on<&String::description>("debugDescription");
  Methods<Array>()
      .allocates()
      .copies_by_retaining()
      .on_class<&empty_array>("array")
      .on_class<&array_of_object>("arrayWithObject:")
      .on_class<&array_of_objects>("arrayWithObjects:count:")
      .on<&Array::init_objects>("initWithObjects:count:")
      .on<&Array::object>("objectAtIndex:")
      .on<&Array::count>("count")
      .on<&Array::enumerator>("objectEnumerator");
  Methods<Enumerator>().on<&Enumerator::next>("nextObject").on<&Enumerator::rest>("allObjects");
  Methods<Dictionary>()
      .allocates()
      .copies_by_retaining()
      .on_class<&empty_dictionary>("dictionary")
      .on_class<&dictionary_of_object>("dictionaryWithObject:forKey:")
      .on_class<&dictionary_of_objects>("dictionaryWithObjects:forKeys:count:")
      .on<&Dictionary::init_objects>("initWithObjects:forKeys:count:")
      .on<&Dictionary::object>("objectForKey:")
      .on<&Dictionary::count>("count")
      .on<&Dictionary::keys>("keyEnumerator");
  Methods<Number> numbers;
  numbers.allocates()
      .copies_by_retaining()
      .on<&Number::text>("stringValue")
      .on<&Number::text>("description")
      .on<&Number::equals>("isEqual:")
      .on<&Number::equals_number>("isEqualToNumber:")
      .on<&Number::compare>("compare:")
      .on<&Number::value<Integer>>("integerValue")
      .on<&Number::value<UInteger>>("unsignedIntegerValue");
  add_number_methods<bool>(numbers, "Bool", "bool");
  add_number_methods<char>(numbers, "Char", "char");
  add_number_methods<unsigned char>(numbers, "UnsignedChar", "unsignedChar");
  add_number_methods<short>(numbers, "Short", "short");
  add_number_methods<unsigned short>(numbers, "UnsignedShort", "unsignedShort");
  add_number_methods<int>(numbers, "Int", "int");
  add_number_methods<unsigned int>(numbers, "UnsignedInt", "unsignedInt");
  add_number_methods<long>(numbers, "Long", "long");
  add_number_methods<unsigned long>(numbers, "UnsignedLong", "unsignedLong");
  add_number_methods<long long>(numbers, "LongLong", "longLong");
  add_number_methods<unsigned long long>(numbers, "UnsignedLongLong", "unsignedLongLong");
  add_number_methods<float>(numbers, "Float", "float");
  add_number_methods<double>(numbers, "Double", "double");
  Methods<Url>()
      .allocates()
      .copies_by_retaining()
      .on_class<&url_of_file>("fileURLWithPath:")
      .on<&Url::init_file>("initFileURLWithPath:")
      .on<&Url::init_string>("initWithString:")
      .on<&Url::path>("fileSystemRepresentation");
  Methods<Error>()
      .allocates()
      .copies_by_retaining()
      .on_class<&error_of_parts>("errorWithDomain:code:userInfo:")
      .on<&Error::init>("initWithDomain:code:userInfo:")
      .property<&Error::domain>("domain")
      .property<&Error::code>("code")
      .property<&Error::user_info>("userInfo")
      .on<&Error::description>("localizedDescription")
      .on<&Error::description>("description");
  Methods<ProcessInfo>()
      .on_class<&process_info>("processInfo")
      .on<&ProcessInfo::version>("operatingSystemVersion")
      .on<&ProcessInfo::version_text>("operatingSystemVersionString")
      .on<&ProcessInfo::is_at_least>("isOperatingSystemAtLeastVersion:")
      .on<&ProcessInfo::processors>("processorCount")
      .on<&ProcessInfo::processors>("activeProcessorCount")
      .on<&ProcessInfo::memory>("physicalMemory")
      .on<&ProcessInfo::uptime>("systemUptime")
      .on<&ProcessInfo::process>("processIdentifier")
      .on<&ProcessInfo::thermal_state>("thermalState")
      .on<&ProcessInfo::no>("isLowPowerModeEnabled")
      .on<&ProcessInfo::no>("isiOSAppOnMac")
      .on<&ProcessInfo::no>("isMacCatalystApp")
      .on<&ProcessInfo::environment>("environment");
  return true;
}();

}  // namespace

}  // namespace foundation
}  // namespace soft
