// An Objective-C message runtime, as much of it as metal-cpp needs: classes and selectors by name, reference
// counts, autorelease pools, blocks. Every object is counted; a message to a deallocated one ends the
// program.
//
// A class is a C++ struct derived from Object whose kClass is its name; Methods<T> binds selectors to its
// members.
#pragma once
#include <objc/message.h>
#include <objc/runtime.h>
#include <atomic>
#include <cstdint>
#include <functional>
#include <new>
#include <string>
#include <unordered_map>
#include <utility>

#define SOFT_EXPORT extern "C" __attribute__((visibility("default")))

namespace soft {

// What a message can be sent to; classes have their own isa at the same place.
struct Object {
  objc_class* isa = nullptr;
  std::atomic<long> references{1};
};

}  // namespace soft

struct objc_class {
  objc_class* isa = nullptr;  // the class of the class: holds the class methods
  objc_class* super = nullptr;
  std::string name;
  bool deallocated = false;  // what a deallocated object becomes: `name` is that of its class
  std::unordered_map<SEL, void*> methods;
  void (*destroy)(soft::Object*) = nullptr;
  std::atomic<long> live{0};
};

namespace soft {

// Ends the program. For what leaves nothing sensible to go on with.
[[noreturn]] void fatal(const std::string& text);

// A wrong use of the API: given to the handler if one is set, else printed, and the program ends. Callers go
// on by ignoring the call.
void misuse(const std::string& text);

objc_class* find_class(const std::string& name);  // made on first mention
void add_method(objc_class* c, const char* selector, void* function);

void retain(Object* object);
void release(Object* object);
void autorelease(Object* object);

// Objects alive of every class that has any.
void each_live_class(const std::function<void(const char* name, long count)>& visit);

template <class T>
objc_class* class_of() {
  static objc_class* const c = find_class(T::kClass);
  return c;
}

// A new object with one reference, the caller's.
template <class T, class... A>
T* make(A&&... a) {
  T* object = new (::operator new(sizeof(T))) T(std::forward<A>(a)...);
  object->isa = class_of<T>();
  object->isa->live++;
  return object;
}

template <class T>
T* autoreleased(T* object) {
  if (object) autorelease(object);
  return object;
}

// Holds one reference.
template <class T>
class Ref {
 public:
  Ref() = default;
  Ref(T* object) : object_(object) {
    if (object_) retain(object_);
  }
  Ref(const Ref& o) : Ref(o.object_) {}
  Ref(Ref&& o) noexcept : object_(std::exchange(o.object_, nullptr)) {}
  ~Ref() {
    if (object_) release(object_);
  }
  Ref& operator=(Ref o) noexcept {
    std::swap(object_, o.object_);
    return *this;
  }
  // Takes over a reference the caller owns.
  static Ref adopt(T* object) {
    Ref ref;
    ref.object_ = object;
    return ref;
  }
  T* get() const { return object_; }
  T* operator->() const { return object_; }
  T& operator*() const { return *object_; }
  explicit operator bool() const { return object_ != nullptr; }

 private:
  T* object_ = nullptr;
};

// Autoreleased objects made in this scope end with it.
class PoolScope {
 public:
  PoolScope();
  ~PoolScope();
  PoolScope(const PoolScope&) = delete;
  PoolScope& operator=(const PoolScope&) = delete;

 private:
  Object* pool_;
};

// A copy of a block, on the heap.
class Block {
 public:
  explicit Block(const void* literal);
  ~Block();
  Block(Block&& o) noexcept : literal_(std::exchange(o.literal_, nullptr)) {}
  Block& operator=(Block&& o) noexcept {
    std::swap(literal_, o.literal_);
    return *this;
  }
  explicit operator bool() const { return literal_ != nullptr; }

  template <class... A>
  void operator()(A... a) const {
    reinterpret_cast<void (*)(const void*, A...)>(invoke())(literal_, a...);
  }

 private:
  void* invoke() const;
  const void* literal_;
};

// ---- how members become methods: a function with the receiver and the selector in front ----

template <auto member>
struct Member;

template <class C, class R, class... A, R (C::*member)(A...)>
struct Member<member> {
  static R call(C* self, SEL, A... a) { return (self->*member)(a...); }
};

template <class C, class R, class... A, R (C::*member)(A...) const>
struct Member<member> {
  static R call(const C* self, SEL, A... a) { return (self->*member)(a...); }
};

template <class R, class... A, R (*function)(A...)>
struct Member<function> {
  static R call(objc_class*, SEL, A... a) { return function(a...); }
};

template <auto field>
struct Property;

template <class C, class V, V C::*field>
struct Property<field> {
  static V get(const C* self, SEL) { return self->*field; }
  static void set(C* self, SEL, V value) { self->*field = value; }
};

template <class C, class V, Ref<V> C::*field>
struct Property<field> {
  static V* get(const C* self, SEL) { return (self->*field).get(); }
  static void set(C* self, SEL, V* value) { self->*field = Ref<V>(value); }
};

template <class T>
class Methods {
 public:
  Methods() : class_(class_of<T>()) {
    class_->destroy = [](Object* object) { static_cast<T*>(object)->~T(); };
  }

  template <auto member>
  Methods& on(const char* selector) {
    return add(class_, selector, &Member<member>::call);
  }
  template <auto function>
  Methods& on_class(const char* selector) {
    return add(class_->isa, selector, &Member<function>::call);
  }
  // A stored value with its reader and, if given, its writer.
  template <auto field>
  Methods& property(const char* reader, const char* writer = nullptr) {
    add(class_, reader, &Property<field>::get);
    if (writer) add(class_, writer, &Property<field>::set);
    return *this;
  }
  // +alloc; -init is inherited unless bound.
  Methods& allocates() { return add(class_->isa, "alloc", &Methods::alloc); }
  // For objects that never change.
  Methods& copies_by_retaining() { return add(class_, "copy", &Methods::copy_retained); }
  Methods& copies() { return add(class_, "copy", &Methods::copy); }

 private:
  template <class F>
  Methods& add(objc_class* c, const char* selector, F* function) {
    add_method(c, selector, reinterpret_cast<void*>(function));
    return *this;
  }
  static T* alloc(objc_class*, SEL) { return make<T>(); }
  static T* copy_retained(T* self, SEL) {
    retain(self);
    return self;
  }
  static T* copy(const T* self, SEL) {
    T* copied = make<T>();
    copied->assign(*self);
    return copied;
  }

  objc_class* class_;
};

}  // namespace soft
