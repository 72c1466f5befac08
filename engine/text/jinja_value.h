// Values of the template language: 16 trivially copyable bytes whose larger parts live in an Arena.
// They follow Python's data model as far as chat templates can see it. Strings say for every byte
// whether the template wrote it ("trusted") or a request did. Thread rule: a value belongs to the
// rendering whose arena holds it. Everything but namespaces and half-read generators is immutable,
// as in the sandbox of the reference.
#pragma once

#include <cstdint>
#include <span>
#include <string_view>

#include "engine/text/jinja_arena.h"

namespace morphserve::jinja {

class Runtime;
struct MacroNode;
struct Frame;
struct LoopState;

enum class Kind : uint8_t {
  kMissing,  // An empty variable slot; never the result of an expression.
  kUndefined,
  kNone,
  kBool,
  kInt,
  kFloat,
  kString,
  kList,
  kTuple,
  kDict,
  kRange,
  kView,       // dict.keys(), dict.values(), dict.items()
  kGenerator,  // One pass; what map, select, items, ... return.
  kNamespace,
  kMacro,
  kMethod,    // A method bound to its object.
  kFunction,  // A global function.
  kLoop,
};

// Offsets of trusted bytes inside one string. Sorted, disjoint, not adjacent, not empty.
struct TrustRun {
  uint32_t begin;
  uint32_t end;
};

// UTF-8, cut only between code points. A string is all trusted, all untrusted, or mixed (runs).
struct Str {
  const char* data = "";
  uint32_t size = 0;
  bool markup = false;   // What `safe` returns: concatenation escapes the other side.
  bool trusted = false;  // Every byte is; `runs` is empty then.
  std::span<const TrustRun> runs;

  std::string_view view() const { return {data, size}; }
  bool mixed() const { return !runs.empty(); }
};

struct List;
class Dict;
struct Range;
struct View;
class Generator;
struct Macro;
struct Method;
enum class FunctionId : uint8_t { kRange, kDict, kNamespace, kRaiseException, kStrftimeNow };

// Why a value is undefined, for the message when it is used.
struct UndefinedInfo {
  std::string_view name;
  const char* owner = nullptr;  // Type of the object that lacks it; null: a variable.
  bool unsafe = false;          // The sandbox hides it.
};

class Value {
 public:
  Value() : kind_(Kind::kNone), int_(0) {}
  static Value Missing() { return Make(Kind::kMissing); }
  static Value Undefined(const UndefinedInfo* info) {
    Value v = Make(Kind::kUndefined);
    v.undefined_ = info;
    return v;
  }
  static Value None() { return Value(); }
  static Value Bool(bool b) {
    Value v = Make(Kind::kBool);
    v.int_ = b ? 1 : 0;
    return v;
  }
  static Value Int(int64_t i) {
    Value v = Make(Kind::kInt);
    v.int_ = i;
    return v;
  }
  static Value Float(double d) {
    Value v = Make(Kind::kFloat);
    v.float_ = d;
    return v;
  }
  static Value String(const Str* s) { return Pointer(Kind::kString, s); }
  static Value OfList(const List* l) { return Pointer(Kind::kList, l); }
  static Value Tuple(const List* l) { return Pointer(Kind::kTuple, l); }
  static Value OfDict(Dict* d) { return Pointer(Kind::kDict, d); }
  static Value Namespace(Dict* d) { return Pointer(Kind::kNamespace, d); }
  static Value OfRange(const Range* r) { return Pointer(Kind::kRange, r); }
  static Value OfView(const View* v) { return Pointer(Kind::kView, v); }
  static Value OfGenerator(Generator* g) { return Pointer(Kind::kGenerator, g); }
  static Value OfMacro(const Macro* m) { return Pointer(Kind::kMacro, m); }
  static Value OfMethod(const Method* m) { return Pointer(Kind::kMethod, m); }
  static Value OfLoop(LoopState* l) { return Pointer(Kind::kLoop, l); }
  static Value Function(FunctionId id) {
    Value v = Make(Kind::kFunction);
    v.int_ = static_cast<int64_t>(id);
    return v;
  }

  Kind kind() const { return kind_; }
  bool is(Kind kind) const { return kind_ == kind; }
  bool is_undefined() const { return kind_ == Kind::kUndefined; }
  bool is_string() const { return kind_ == Kind::kString; }
  // Python's bool is an int: true for both.
  bool is_integral() const { return kind_ == Kind::kInt || kind_ == Kind::kBool; }
  bool is_number() const { return is_integral() || kind_ == Kind::kFloat; }
  bool is_sequence() const { return kind_ == Kind::kList || kind_ == Kind::kTuple; }

  // Each accessor needs the matching kind.
  bool boolean() const { return int_ != 0; }
  int64_t integer() const { return int_; }
  double number() const { return kind_ == Kind::kFloat ? float_ : static_cast<double>(int_); }
  const Str& str() const { return *static_cast<const Str*>(pointer_); }
  std::string_view text() const { return str().view(); }
  const List& list() const { return *static_cast<const List*>(pointer_); }
  Dict& dict() const { return *static_cast<Dict*>(const_cast<void*>(pointer_)); }
  const Range& range() const { return *static_cast<const Range*>(pointer_); }
  const View& view() const { return *static_cast<const View*>(pointer_); }
  Generator& generator() const { return *static_cast<Generator*>(const_cast<void*>(pointer_)); }
  const Macro& macro() const { return *static_cast<const Macro*>(pointer_); }
  const Method& method() const { return *static_cast<const Method*>(pointer_); }
  LoopState& loop() const { return *static_cast<LoopState*>(const_cast<void*>(pointer_)); }
  FunctionId function() const { return static_cast<FunctionId>(int_); }
  const UndefinedInfo* undefined_info() const { return undefined_; }
  const void* identity() const { return pointer_; }

 private:
  static Value Make(Kind kind) {
    Value v;
    v.kind_ = kind;
    return v;
  }
  static Value Pointer(Kind kind, const void* pointer) {
    Value v = Make(kind);
    v.pointer_ = pointer;
    return v;
  }

  Kind kind_;
  union {
    int64_t int_;
    double float_;
    const void* pointer_;
    const UndefinedInfo* undefined_;
  };
};

struct List {
  const Value* items = nullptr;
  size_t size = 0;

  std::span<const Value> span() const { return {items, size}; }
};

// Insertion-ordered map with Python's key equality (1 == 1.0 == True). Grows inside the arena.
class Dict {
 public:
  struct Entry {
    Value key;
    Value value;
  };

  size_t size() const { return size_; }
  std::span<const Entry> entries() const { return {entries_, size_}; }
  // Null when absent. `key` must be hashable.
  const Value* Find(const Value& key) const;
  const Value* FindText(std::string_view key) const;
  // Replaces the value of an equal key and keeps its place. False at the arena's limit.
  bool Set(Arena& arena, const Value& key, const Value& value);

 private:
  static constexpr size_t kIndexFrom = 8;  // Below it a scan beats hashing.

  template <typename Match>
  const Entry* Lookup(uint64_t hash, Match match) const;
  bool Grow(Arena& arena);

  Entry* entries_ = nullptr;
  uint32_t* index_ = nullptr;  // Open addressing, entry number + 1; 0 is free.
  size_t size_ = 0;
  size_t capacity_ = 0;
  size_t index_mask_ = 0;
};

struct Range {
  int64_t start = 0;
  int64_t stop = 0;
  int64_t step = 1;
  int64_t length = 0;
};

enum class ViewKind : uint8_t { kKeys, kValues, kItems };

struct View {
  const Dict* dict;
  ViewKind kind;
};

// A lazy sequence. Next sets `*done` at the end; false means the rendering failed.
class Generator {
 public:
  virtual bool Next(Runtime& rt, Value* out, bool* done) = 0;

 protected:
  Generator() = default;
  ~Generator() = default;  // Lives in an arena; never destroyed.
};

struct Macro {
  const MacroNode* node;
  Frame* closure;
};

struct Method {
  Value self;
  std::string_view name;
};

// Python's name of the type, as its messages have it.
const char* TypeName(const Value& value);

// Python's truth value.
bool Truthy(const Value& value);

// True for what may be a dict key. Of tuples only flat ones, which keeps hashing linear.
bool Hashable(const Value& value);
uint64_t HashOf(const Value& value);

// Values nested deeper than this are refused when printed and unequal when compared.
inline constexpr int kValueDepthMax = 200;

// Python's ==. `steps`, when given, is lowered by one a comparison; below zero the answer is false
// (shared substructures would else take exponential time). Dict keys need no bound.
bool Equal(const Value& a, const Value& b, int64_t* steps, int depth = 0);

}  // namespace morphserve::jinja
