// Sessions: conversations that come and go, in B slots that one model serves frame by frame.
//
// Formula: a session is one row of Talk::State. join starts a row anew; fork, snapshot and restore copy it to
//          another row, or to a State of one session; step is one frame of those that were given sound.
//          What a session says is what it would say if all other slots were empty, bit for bit: that is the
//          contract of the blocks, and the law of tests/laws/sessions.cpp. In another slot it says the same
//          bits too; on a CPU only if the number of slots is a multiple of 4, as Eigen sums the last rows of
//          other products in another order.
// Shapes:  slots fixed at construction; a frame (frame_size, channels); a Snapshot is a Store of one session.
// Units:   one step is one frame (80 ms); contexts in frames.
// Errors:  no free slot; a session that has left; a snapshot that is not of one session; a negative context.
//          After any of them all is as before.
// Not supported: growing; use of one object from several threads at once. A slot keeps its numbers until the
//          next session takes it.
// Source:  none.
//
// All calls between two steps take effect at the frame boundary, and touch the rows of their session alone. A
// step allocates nothing; on Cuda it is one recorded graph, whoever takes part: the graph reads who does.
// A Snapshot lives on the backend; download brings it to the host, save_state and load_state of
// io/checkpoint.hpp take it to a file and back.
#pragma once

#include <algorithm>
#include <memory>
#include <optional>
#include <vector>

#include "mttt/lm/duplex.hpp"
#include "mttt/lm/gates.hpp"

namespace mttt {

/// A session as join and fork return it. It names nothing once the session has left.
struct SessionId {
  Index slot = -1;
  std::uint64_t number = 0;  // counts the sessions of all slots
  bool operator==(const SessionId&) const = default;
};

struct SessionOptions {
  std::int64_t seed = 0;     // of all its draws
  std::int64_t context = 0;  // frames that its attention sees, if fewer than the model's; 0: as many
};

namespace detail {

/// Where frames wait on the host, for a Store.
struct HostFrames {
  class Memory {
   public:
    Memory(HostFrames&, Index bytes, MemoryUse)
        : bytes_(std::make_unique<std::byte[]>(static_cast<std::size_t>(bytes))) {}
    void* data() { return bytes_.get(); }
    const void* data() const { return bytes_.get(); }

   private:
    std::unique_ptr<std::byte[]> bytes_;
  };
};

/// Copies rows of any length, cut into pieces so that a GPU takes them all at once.
struct CopyRows {
  static constexpr Index piece = Index{64} << 10, words = 16;  // bytes
  struct __attribute__((may_alias, aligned(words))) Word {
    std::uint64_t of[2];
  };
  struct __attribute__((may_alias)) Byte {
    std::byte of;
  };
  const std::int64_t* table;  // (rows, 4): from, to, bytes, number of the row's first piece
  Index rows;

  template <class Team>
  MTTT_HD void operator()(Team team, Index i) const {
    Index row = 0, end = rows;  // the last row that starts with piece i or before it
    while (end - row > 1) {
      const Index middle = (row + end) / 2;
      (table[4 * middle + 3] <= i ? row : end) = middle;
    }
    const std::int64_t* of = table + 4 * row;
    const Index first = (i - static_cast<Index>(of[3])) * piece, left = static_cast<Index>(of[2]) - first,
                n = piece < left ? piece : left;
    copy(team, of[0] + first, of[1] + first, n);
  }

 private:
  template <class Team>
  MTTT_HD static void copy(Team team, std::int64_t from, std::int64_t to, Index n) {
    // NOLINTBEGIN(performance-no-int-to-ptr): addresses travel in a tensor of whole numbers
    if ((from | to | n) % words == 0) {
      const Word* source = reinterpret_cast<const Word*>(from);
      Word* target = reinterpret_cast<Word*>(to);
      team.for_each(n / words, [=](Index j) { target[j] = source[j]; });
    } else {
      const Byte* source = reinterpret_cast<const Byte*>(from);
      Byte* target = reinterpret_cast<Byte*>(to);
      team.for_each(n, [=](Index j) { target[j] = source[j]; });
    }
    // NOLINTEND(performance-no-int-to-ptr)
  }
};

/// Copies a session from row to row of two States by one kernel, without allocating.
template <class State, class B>
class SessionCopier {
  struct Table {
    Tensor<std::int64_t, dyn, 4> rows;
    static void visit(auto&& f, auto&&... t) { f("rows", t.rows...); }
  };
  HostFrames host_;
  Store<Table, HostFrames> made_;
  Store<Table, B> table_;

  static Index count() {
    Index n = 0;
    State none;
    for_each_tensor(
        [&](std::string_view, const auto& t) {
          static_assert(std::remove_cvref_t<decltype(t)>::static_extents[0] == dyn,
                        "Sessions: the first extent of every tensor of a State must be its sessions");
          ++n;
        },
        none);
    return n;
  }

 public:
  explicit SessionCopier(B& be) : made_(host_, count()), table_(be, count()) {}

  /// Rows in range, and not the same row twice, are the caller's promise.
  void operator()(B& be, const State& from, Index from_row, State& to, Index to_row) {
    Index row = 0, pieces = 0;
    for_each_tensor(
        [&](std::string_view, const auto& source, const auto& target) {
          using T = typename std::remove_cvref_t<decltype(source)>::value_type;
          const Index width = source.extent(0) == 0 ? 0 : source.size() / source.extent(0);
          const Index bytes = width * static_cast<Index>(sizeof(T));
          std::int64_t* of = &made_->rows(row++, 0);
          of[0] = reinterpret_cast<std::int64_t>(source.data() + from_row * width);
          of[1] = reinterpret_cast<std::int64_t>(target.data() + to_row * width);
          of[2] = bytes;
          of[3] = pieces;
          pieces += (bytes + CopyRows::piece - 1) / CopyRows::piece;
        },
        from, to);
    upload(be, made_, table_);
    be.rows(pieces, CopyRows{table_->rows.data(), row}, 0, CopyRows::piece);
  }
};

/// What B records of work, if it records any.
template <class B, class Work>
struct Recorded {
  struct Type {
    void launch() {}
  };
  static constexpr bool possible = false;
};
template <class B, class Work>
requires requires(B be, Work work) { be.capture(work); }
struct Recorded<B, Work> {
  using Type = decltype(std::declval<B&>().capture(std::declval<Work&>()));
  static constexpr bool possible = true;
};

}  // namespace detail

/// `Talk` is a Duplex on the backend B.
template <class Talk, class B>
class Sessions {
  using U = typename Talk::U;

 public:
  using State = typename Talk::State;
  using Snapshot = Store<State, B>;  // of one session: Snapshot room(be)
  using Sound = Tensor<U, Talk::frame_size, Talk::channels>;

  /// Takes the memory of all slots. The models stay with the caller, and must outlive it.
  Sessions(B& be, const typename Talk::Models& models, Index slots, const GenOptions& options = {})
      : be_(be),
        models_(models),
        options_(options),
        state_(be, checked(slots)),
        in_(be, slots),
        out_(be, slots),
        host_in_(host_, slots),
        host_out_(host_, slots),
        copy_(be),
        numbers_(static_cast<std::size_t>(slots)) {
    clear_replies();
    if constexpr (detail::Recorded<B, Frame>::possible) graph_.emplace(be.capture(Frame{*this}));
  }
  Sessions(const Sessions&) = delete;
  Sessions& operator=(const Sessions&) = delete;

  Index slots() const { return state_.batch(); }
  Index taken() const { return slots() - std::count(numbers_.begin(), numbers_.end(), 0u); }
  bool has(SessionId id) const {
    return id.slot >= 0 && id.slot < slots() && id.number != 0 && number(id.slot) == id.number;
  }
  /// All rows; that of a session is its slot.
  const State& state() const { return *state_; }

  /// Starts a conversation in a free slot.
  SessionId join(const SessionOptions& options = {}) {
    check_context("Sessions::join", options);
    const Index slot = free_slot("Sessions::join");
    start(slot, options);
    return enter(slot);
  }
  /// Goes on with one that was kept, in a free slot. It keeps its seed and its context.
  SessionId join(const Snapshot& kept) {
    expect_one("Sessions::join", kept);
    const Index slot = free_slot("Sessions::join");
    copy_(be_, *kept, 0, *state_, slot);
    return enter(slot);
  }
  /// A second conversation with the same past, and the same seed until `reseed`.
  SessionId fork(SessionId id) {
    expect(id, "Sessions::fork");
    const Index slot = free_slot("Sessions::fork");
    copy_(be_, *state_, id.slot, *state_, slot);
    return enter(slot);
  }
  void leave(SessionId id) {
    expect(id, "Sessions::leave");
    host_in_->active(id.slot) = 0;
    clear_reply(id.slot);
    numbers_[static_cast<std::size_t>(id.slot)] = 0;
  }

  /// The conversation starts anew in its slot.
  void reset(SessionId id, const SessionOptions& options = {}) {
    expect(id, "Sessions::reset");
    check_context("Sessions::reset", options);
    start(id.slot, options);
  }
  /// Draws from the next frame on as a session of this seed would.
  void reseed(SessionId id, std::int64_t seed) {
    expect(id, "Sessions::reseed");
    be_.fill(state_->lm.seed.data() + id.slot, 1, seed);
  }

  void snapshot(SessionId id, Snapshot& to) {
    expect(id, "Sessions::snapshot");
    expect_one("Sessions::snapshot", to);
    copy_(be_, *state_, id.slot, *to, 0);
  }
  Snapshot snapshot(SessionId id) {
    expect(id, "Sessions::snapshot");
    Snapshot kept(be_);
    snapshot(id, kept);
    return kept;
  }
  /// The session becomes the one that was kept.
  void restore(SessionId id, const Snapshot& kept) {
    expect(id, "Sessions::restore");
    expect_one("Sessions::restore", kept);
    copy_(be_, *kept, 0, *state_, id.slot);
  }

  /// Where the samples go that the session hears in the next step: with this call it takes part in that step.
  /// Samples that are not written are those of the frame before, of the first frame 0.
  Sound hear(SessionId id) {
    expect(id, "Sessions::hear");
    host_in_->active(id.slot) = 1;
    return Sound(&host_in_->pcm(id.slot, 0, 0));
  }
  /// One frame of all that were given sound; the others stay as they are.
  void step() {
    const std::uint8_t* active = host_in_->active.data();
    if (std::all_of(active, active + slots(), [](std::uint8_t x) { return x == 0; })) return clear_replies();
    upload(be_, host_in_, in_);
    if constexpr (detail::Recorded<B, Frame>::possible) {
      graph_->launch();
    } else {
      run();
    }
    download(be_, out_, host_out_);
    std::fill_n(host_in_->active.data(), slots(), std::uint8_t{0});
  }
  /// What the session sounded like, said and heard in the last step: silence and ungenerated_code if it took
  /// no part, and until the delays are filled. Valid until the next step.
  Tensor<const U, Talk::frame_size, Talk::channels> sound(SessionId id) const {
    expect(id, "Sessions::sound");
    return Sound(&host_out_->pcm(id.slot, 0, 0));
  }
  Tensor<const std::int32_t, 1 + Talk::voices> said(SessionId id) const {
    expect(id, "Sessions::said");
    return Tensor<const std::int32_t, 1 + Talk::voices>(&host_out_->said(id.slot, 0));
  }
  Tensor<const std::int32_t, Talk::hears> heard(SessionId id) const {
    expect(id, "Sessions::heard");
    return Tensor<const std::int32_t, Talk::hears>(&host_out_->heard(id.slot, 0));
  }

 private:
  struct Frame {
    Sessions& all;
    void operator()() const { all.run(); }
  };
  void run() {
    // Nobody starts anew within a frame: no time goes into asking.
    Talk::step(be_, models_, *state_, {in_->pcm, in_->active, {}, {}}, *out_, options_);
  }

  std::uint64_t number(Index slot) const { return numbers_[static_cast<std::size_t>(slot)]; }
  SessionId enter(Index slot) {
    std::fill_n(&host_in_->pcm(slot, 0, 0), Talk::frame_size * Talk::channels, U(0));
    clear_reply(slot);
    return {slot, numbers_[static_cast<std::size_t>(slot)] = ++last_};
  }

  void start(Index slot, const SessionOptions& options) {
    host_in_->reset(slot) = 1;
    host_in_->seed(slot) = options.seed;
    upload(be_, host_in_, in_);
    host_in_->reset(slot) = 0;
    Talk::reset(be_, models_, *state_, in_->reset, in_->seed);
    if (options.context > 0) set_context(be_, state_->lm, options.context, slot);
  }

  void clear_reply(Index slot) {
    std::fill_n(&host_out_->pcm(slot, 0, 0), Talk::frame_size * Talk::channels, U(0));
    std::fill_n(&host_out_->said(slot, 0), 1 + Talk::voices, ungenerated_code);
    std::fill_n(&host_out_->heard(slot, 0), Talk::hears, ungenerated_code);
  }
  void clear_replies() {
    for (Index slot = 0; slot < slots(); ++slot) clear_reply(slot);
  }

  static Index checked(Index slots) {
    if (slots < 1) fail("Sessions", std::to_string(slots) + " slots", "at least one");
    return slots;
  }
  Index free_slot(const char* who) const {
    for (Index slot = 0; slot < slots(); ++slot) {
      if (number(slot) == 0) return slot;
    }
    fail(who, "sessions in all " + std::to_string(slots()) + " slots", "a free slot",
         "let one leave, or make Sessions of more slots");
  }
  void expect(SessionId id, const char* who) const {
    if (has(id)) return;
    fail(who,
         "session " + std::to_string(id.number) + " of slot " + std::to_string(id.slot) +
             ", which is not here",
         "one that join or fork of the same Sessions returned, and that has not left");
  }
  static void expect_one(const char* who, const Snapshot& kept) {
    if (kept.batch() == 1) return;
    fail(who, "a State of " + std::to_string(kept.batch()) + " sessions", "a State of one",
         "make it as Snapshot room(be)");
  }
  static void check_context(const char* who, const SessionOptions& options) {
    if (options.context >= 0) return;
    fail(who, "a context of " + std::to_string(options.context) + " frames", "0 or more",
         "0 is the context of the model");
  }

  B& be_;
  typename Talk::Models models_;
  GenOptions options_;
  Store<State, B> state_;
  Store<typename Talk::Input, B> in_;
  Store<typename Talk::Output, B> out_;
  detail::HostFrames host_;
  Store<typename Talk::Input, detail::HostFrames> host_in_;
  Store<typename Talk::Output, detail::HostFrames> host_out_;
  detail::SessionCopier<State, B> copy_;
  std::vector<std::uint64_t> numbers_;  // of each slot's session; 0: the slot is free
  std::uint64_t last_ = 0;
  std::optional<typename detail::Recorded<B, Frame>::Type> graph_;
};

}  // namespace mttt
