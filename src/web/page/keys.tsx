import { useLayoutEffect, useRef } from "preact/hooks";
import { Dialog, typing } from "./parts.tsx";

/** Keys of the view that is shown, by KeyboardEvent.key. */
type Keys = Readonly<Record<string, (event: KeyboardEvent) => void>>;

/** Listens while the component is shown; keys typed into fields and with modifiers are left alone. */
export function useKeys(keys: Keys): void {
  const now = useRef(keys);
  now.current = keys;
  useLayoutEffect(() => {
    const pressed = (event: KeyboardEvent) => {
      if (event.defaultPrevented || event.ctrlKey || event.metaKey || event.altKey || typing(event)) return;
      const does = now.current[event.key];
      if (does === undefined) return;
      event.preventDefault();
      does(event);
    };
    addEventListener("keydown", pressed);
    return () => removeEventListener("keydown", pressed);
  }, []);
}

const HELP: readonly (readonly [string, readonly (readonly [string, string])[]])[] = [
  [
    "Everywhere",
    [
      ["g r", "list of runs"],
      ["g c", "chat"],
      ["d", "dark, light, or as the system has it"],
      ["?", "this help"],
    ],
  ],
  [
    "Runs",
    [
      ["j k", "next, previous run"],
      ["x", "mark for comparison"],
      ["Enter", "open"],
      ["/", "search"],
    ],
  ],
  [
    "A run",
    [
      ["1 … 8", "curves, rewards, rollouts, health, system, config, checkpoints, routing"],
      ["l", "logarithmic axis"],
      ["z", "whole range (as a double click)"],
      ["[ ]", "less, more smoothing"],
    ],
  ],
  [
    "A sweep",
    [
      ["b", "the band: standard deviation, or least to greatest"],
      ["[ ]", "less, more smoothing"],
    ],
  ],
  [
    "Rollouts",
    [
      ["j k", "next, previous rollout"],
      ["h l", "within the group"],
      ["t", "what the colours say"],
      ["s", "group side by side"],
      ["c", "copy as JSON"],
      ["/", "search in the texts"],
    ],
  ],
  [
    "Chat",
    [
      ["Enter", "sends, with Shift a new line"],
      ["Esc", "stops the replies"],
      ["/", "to the message"],
      ["t", "shade by surprise"],
    ],
  ],
];

export function Help({ onClose }: { onClose: () => void }) {
  return (
    <Dialog title="Keyboard" onClose={onClose}>
      <div class="help stack">
        {HELP.map(([title, keys]) => (
          <section key={title}>
            <h2>{title}</h2>
            <dl>
              {keys.map(([key, does]) => (
                <>
                  <dt>
                    {key.split(" ").map((each) => (each === "…" ? each : <kbd key={each}>{each}</kbd>))}
                  </dt>
                  <dd>{does}</dd>
                </>
              ))}
            </dl>
          </section>
        ))}
        <p class="muted">
          In a curve: drag to zoom, double click for the whole range. In a completion: arrow keys walk along
          its tokens.
        </p>
      </div>
    </Dialog>
  );
}
