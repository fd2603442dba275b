#include "objc.h"

#include <cstdio>
#include <cstdlib>
#include <deque>
#include <map>
#include <mutex>
#include <set>
#include <vector>

namespace soft {

namespace {

// Memory of deallocated objects is kept for a while, so that late messages to them are seen.
constexpr size_t kKeptDeallocated = 4096;

// Never destroyed: threads may still run when the program ends.
struct Runtime {
  std::mutex mutex;
  std::set<std::string> selectors;
  std::map<std::string, objc_class*> classes;
  std::map<objc_class*, objc_class*> deallocated;  // what objects of a class become
  std::deque<void*> kept;
};

Runtime& runtime() {
  static Runtime* const r = new Runtime;
  return *r;
}

std::atomic<void (*)(const char*)> validation_handler{nullptr};

const char* text_of(SEL selector) { return reinterpret_cast<const char*>(selector); }

void* find_method(const objc_class* c, SEL selector) {
  for (; c; c = c->super) {
    auto found = c->methods.find(selector);
    if (found != c->methods.end()) return found->second;
  }
  return nullptr;
}

void bury(Object* object) {
  objc_class* c = object->isa;
  c->live--;
  if (c->destroy) c->destroy(object);
  void* memory = object;
  void* expired = nullptr;
  {
    Runtime& r = runtime();
    std::lock_guard<std::mutex> lock(r.mutex);
    objc_class*& grave = r.deallocated[c];
    if (!grave) {
      grave = new objc_class;
      grave->name = c->name;
      grave->deallocated = true;
    }
    Object* remains = new (memory) Object;
    remains->isa = grave;
    remains->references = 0;
    r.kept.push_back(memory);
    if (r.kept.size() > kKeptDeallocated) {
      expired = r.kept.front();
      r.kept.pop_front();
    }
  }
  ::operator delete(expired);
}

}  // namespace

void fatal(const std::string& text) {
  std::fprintf(stderr, "software Metal: %s\n", text.c_str());
  std::fflush(stderr);
  std::abort();
}

void misuse(const std::string& text) {
  auto handler = validation_handler.load();
  if (!handler) fatal(text);
  handler(text.c_str());
}

objc_class* find_class(const std::string& name) {
  Runtime& r = runtime();
  std::lock_guard<std::mutex> lock(r.mutex);
  objc_class*& c = r.classes[name];
  if (c) return c;
  c = new objc_class;
  c->name = name;
  c->isa = new objc_class;
  c->isa->name = name;
  objc_class*& root = r.classes["NSObject"];
  if (name != "NSObject") {
    if (!root) {
      root = new objc_class;
      root->name = "NSObject";
      root->isa = new objc_class;
      root->isa->name = "NSObject";
    }
    c->super = root;
    c->isa->super = root->isa;
  }
  return c;
}

void add_method(objc_class* c, const char* selector, void* function) {
  c->methods[sel_registerName(selector)] = function;
}

void retain(Object* object) { object->references++; }

void release(Object* object) {
  const long left = --object->references;
  if (left < 0) fatal("release of a deallocated object of class " + object->isa->name);
  if (left == 0) bury(object);
}

void each_live_class(const std::function<void(const char*, long)>& visit) {
  std::vector<std::pair<std::string, long>> counts;
  {
    Runtime& r = runtime();
    std::lock_guard<std::mutex> lock(r.mutex);
    for (const auto& [name, c] : r.classes)
      if (long live = c->live) counts.emplace_back(name, live);
  }
  for (const auto& [name, live] : counts) visit(name.c_str(), live);
}

// ---- autorelease pools ----

namespace {

struct AutoreleasePool : Object {
  static constexpr const char* kClass = "NSAutoreleasePool";

  AutoreleasePool* init();
  void drain();
  void add(Object* object) { objects.push_back(object); }

  std::vector<Object*> objects;
};

// Innermost last. Plain memory that is never freed: a thread may end with pools in place.
thread_local std::vector<AutoreleasePool*>* thread_pools = nullptr;

std::vector<AutoreleasePool*>& pools() {
  if (!thread_pools) thread_pools = new std::vector<AutoreleasePool*>;
  return *thread_pools;
}

AutoreleasePool* AutoreleasePool::init() {
  pools().push_back(this);
  return this;
}

// Pools opened later and never drained go with this one.
void AutoreleasePool::drain() {
  auto& stack = pools();
  bool mine = false;
  for (AutoreleasePool* pool : stack) mine = mine || pool == this;
  if (!mine) return misuse("an NSAutoreleasePool is drained that is not one of this thread's");
  for (bool last = false; !last;) {
    AutoreleasePool* pool = stack.back();
    last = pool == this;
    // Releasing may autorelease more.
    while (!pool->objects.empty()) {
      std::vector<Object*> objects;
      objects.swap(pool->objects);
      for (Object* object : objects) release(object);
    }
    stack.pop_back();
    release(pool);
  }
  if (stack.empty()) delete std::exchange(thread_pools, nullptr);
}

}  // namespace

void autorelease(Object* object) {
  if (!thread_pools || thread_pools->empty()) {
    std::fprintf(stderr, "software Metal: autoreleased without a pool, it leaks: %s\n",
                 object->isa->name.c_str());
    return;
  }
  thread_pools->back()->add(object);
}

PoolScope::PoolScope() : pool_(make<AutoreleasePool>()->init()) {}
PoolScope::~PoolScope() { static_cast<AutoreleasePool*>(pool_)->drain(); }

// ---- what every object understands ----

namespace {

struct Root : Object {
  static constexpr const char* kClass = "NSObject";

  Root* init() { return this; }
  Root* retained() {
    retain(this);
    return this;
  }
  void released() { release(this); }
  Root* autoreleased_later() { return autoreleased(this); }
  unsigned long count() const { return static_cast<unsigned long>(references.load()); }
  bool equals(const Object* other) const { return this == other; }
  unsigned long hash() const { return reinterpret_cast<unsigned long>(this); }
  bool responds(SEL selector) const { return find_method(isa, selector) != nullptr; }
  Object* signature(SEL) const { return nullptr; }
};

const bool registered = [] {
  Methods<Root>()
      .on<&Root::init>("init")
      .on<&Root::retained>("retain")
      .on<&Root::released>("release")
      .on<&Root::autoreleased_later>("autorelease")
      .on<&Root::count>("retainCount")
      .on<&Root::equals>("isEqual:")
      .on<&Root::hash>("hash")
      .on<&Root::responds>("respondsToSelector:")
      .on<&Root::signature>("methodSignatureForSelector:");
  Methods<AutoreleasePool>()
      .allocates()
      .on<&AutoreleasePool::init>("init")
      .on<&AutoreleasePool::drain>("drain")
      .on<&AutoreleasePool::drain>("release")
      .on<&AutoreleasePool::add>("addObject:");
  return true;
}();

}  // namespace

}  // namespace soft

extern "C" {

SEL sel_registerName(const char* name) {
  soft::Runtime& r = soft::runtime();
  std::lock_guard<std::mutex> lock(r.mutex);
  return reinterpret_cast<SEL>(const_cast<char*>(r.selectors.insert(name).first->c_str()));
}

Class objc_lookUpClass(const char* name) { return soft::find_class(name); }

Protocol* objc_getProtocol(const char*) { return nullptr; }

// The function for a message; null if the receiver is nil. Called by objc_msgSend below.
__attribute__((used, visibility("hidden"))) void* soft_objc_find(const soft::Object* receiver, SEL selector) {
  if (!receiver) return nullptr;
  if (void* method = soft::find_method(receiver->isa, selector)) return method;
  const objc_class* c = receiver->isa;
  const std::string message = c->name + " " + soft::text_of(selector) + "]";
  if (c->deallocated) soft::fatal("message to a deallocated object: -[" + message);
  const bool is_class = soft::find_class(c->name)->isa == c;
  soft::fatal(std::string("not implemented: ") + (is_class ? "+[" : "-[") + message);
}

SOFT_EXPORT void soft_set_validation_handler(void (*handler)(const char*)) {
  soft::validation_handler = handler;
}

}  // extern "C"

// objc_msgSend: keeps every argument register, finds the function, jumps to it. A message to nil returns
// zeros.
// clang-format off
#if defined(__x86_64__)

#define SAVE_ARGUMENTS                                                        \
  "pushq %rbp\n movq %rsp, %rbp\n subq $192, %rsp\n"                          \
  "movq %rdi, 0(%rsp)\n movq %rsi, 8(%rsp)\n movq %rdx, 16(%rsp)\n"           \
  "movq %rcx, 24(%rsp)\n movq %r8, 32(%rsp)\n movq %r9, 40(%rsp)\n"           \
  "movq %rax, 48(%rsp)\n"                                                     \
  "movups %xmm0, 64(%rsp)\n movups %xmm1, 80(%rsp)\n"                         \
  "movups %xmm2, 96(%rsp)\n movups %xmm3, 112(%rsp)\n"                        \
  "movups %xmm4, 128(%rsp)\n movups %xmm5, 144(%rsp)\n"                       \
  "movups %xmm6, 160(%rsp)\n movups %xmm7, 176(%rsp)\n"
#define RESTORE_ARGUMENTS_AND_JUMP                                            \
  "movq %rax, %r11\n"                                                         \
  "movq 0(%rsp), %rdi\n movq 8(%rsp), %rsi\n movq 16(%rsp), %rdx\n"           \
  "movq 24(%rsp), %rcx\n movq 32(%rsp), %r8\n movq 40(%rsp), %r9\n"           \
  "movq 48(%rsp), %rax\n"                                                     \
  "movups 64(%rsp), %xmm0\n movups 80(%rsp), %xmm1\n"                         \
  "movups 96(%rsp), %xmm2\n movups 112(%rsp), %xmm3\n"                        \
  "movups 128(%rsp), %xmm4\n movups 144(%rsp), %xmm5\n"                       \
  "movups 160(%rsp), %xmm6\n movups 176(%rsp), %xmm7\n"                       \
  "leave\n testq %r11, %r11\n je 1f\n jmp *%r11\n"

asm(".text\n"
    ".globl objc_msgSend\n.hidden objc_msgSend\n.type objc_msgSend, @function\n"
    ".globl objc_msgSend_fpret\n.hidden objc_msgSend_fpret\n.type objc_msgSend_fpret, @function\n"
    "objc_msgSend:\nobjc_msgSend_fpret:\n" SAVE_ARGUMENTS
    "call soft_objc_find\n" RESTORE_ARGUMENTS_AND_JUMP
    "1: xorl %eax, %eax\n xorl %edx, %edx\n xorps %xmm0, %xmm0\n xorps %xmm1, %xmm1\n ret\n"
    ".size objc_msgSend, .-objc_msgSend\n"
    // The address of the result comes first, then the receiver. What nil returns is undefined.
    ".globl objc_msgSend_stret\n.hidden objc_msgSend_stret\n.type objc_msgSend_stret, @function\n"
    "objc_msgSend_stret:\n" SAVE_ARGUMENTS
    "movq %rsi, %rdi\n movq %rdx, %rsi\n call soft_objc_find\n" RESTORE_ARGUMENTS_AND_JUMP
    "1: movq %rdi, %rax\n ret\n"
    ".size objc_msgSend_stret, .-objc_msgSend_stret\n");

#elif defined(__aarch64__)

// x8 is the address of a large result. Results of every kind come back through the same entry.
asm(".text\n.p2align 2\n"
    ".globl objc_msgSend\n.hidden objc_msgSend\n.type objc_msgSend, %function\n"
    "objc_msgSend:\n"
    "stp x29, x30, [sp, #-224]!\n mov x29, sp\n"
    "stp x0, x1, [sp, #16]\n stp x2, x3, [sp, #32]\n stp x4, x5, [sp, #48]\n stp x6, x7, [sp, #64]\n"
    "str x8, [sp, #80]\n"
    "stp q0, q1, [sp, #96]\n stp q2, q3, [sp, #128]\n stp q4, q5, [sp, #160]\n stp q6, q7, [sp, #192]\n"
    "bl soft_objc_find\n"
    "mov x16, x0\n"
    "ldp x0, x1, [sp, #16]\n ldp x2, x3, [sp, #32]\n ldp x4, x5, [sp, #48]\n ldp x6, x7, [sp, #64]\n"
    "ldr x8, [sp, #80]\n"
    "ldp q0, q1, [sp, #96]\n ldp q2, q3, [sp, #128]\n ldp q4, q5, [sp, #160]\n ldp q6, q7, [sp, #192]\n"
    "ldp x29, x30, [sp], #224\n"
    "cbz x16, 1f\n br x16\n"
    "1: mov x0, #0\n mov x1, #0\n movi v0.2d, #0\n movi v1.2d, #0\n movi v2.2d, #0\n movi v3.2d, #0\n ret\n"
    ".size objc_msgSend, .-objc_msgSend\n");

#else
#error "objc_msgSend is written for x86-64 and aarch64"
#endif
// clang-format on
