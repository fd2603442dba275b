import type { ComponentChildren } from "preact";
import { useLayoutEffect, useRef, useState } from "preact/hooks";

interface VirtualListProps<T> {
  readonly items: readonly T[];
  /** How many there are in all; `onNear` is asked for those not loaded. */
  readonly total: number;
  /** Pixels; every row is as high. */
  readonly rowHeight: number;
  readonly keyOf: (item: T) => string;
  readonly row: (item: T, index: number) => ComponentChildren;
  /** Called when the end of what is loaded comes near. */
  readonly onNear: () => void;
  /** Kept in sight. */
  readonly at: number;
  readonly label: string;
  readonly activeId: string | undefined;
  readonly onKeyDown: (event: KeyboardEvent) => void;
}

const OVERSCAN = 8;

/** A list of any length that has only the rows in sight in the document. */
export function VirtualList<T>(props: VirtualListProps<T>) {
  const { items, rowHeight, at } = props;
  const host = useRef<HTMLDivElement>(null);
  const [view, setView] = useState({ top: 0, height: 800 });
  const first = Math.max(0, Math.floor(view.top / rowHeight) - OVERSCAN);
  const last = Math.min(items.length, Math.ceil((view.top + view.height) / rowHeight) + OVERSCAN);

  useLayoutEffect(() => {
    const element = host.current!;
    const measure = () => setView({ top: element.scrollTop, height: element.clientHeight });
    const sized = new ResizeObserver(measure);
    sized.observe(element);
    element.addEventListener("scroll", measure, { passive: true });
    measure();
    return () => {
      sized.disconnect();
      element.removeEventListener("scroll", measure);
    };
  }, []);

  useLayoutEffect(() => {
    if (items.length < props.total && last > items.length - 40) props.onNear();
  }, [last, items.length, props.total]);

  useLayoutEffect(() => {
    const element = host.current!;
    if (at < 0) return;
    const top = at * rowHeight;
    if (top < element.scrollTop) element.scrollTop = top;
    else if (top + rowHeight > element.scrollTop + element.clientHeight)
      element.scrollTop = top + rowHeight - element.clientHeight;
  }, [at]);

  return (
    <div
      class="virtual"
      ref={host}
      role="listbox"
      tabIndex={0}
      aria-label={props.label}
      aria-activedescendant={props.activeId}
      onKeyDown={props.onKeyDown}
    >
      <div class="whole" style={{ height: `${items.length * rowHeight}px` }}>
        {items.slice(first, last).map((item, offset) => (
          <div
            class="slot"
            role="presentation"
            key={props.keyOf(item)}
            style={{ height: `${rowHeight}px`, transform: `translateY(${(first + offset) * rowHeight}px)` }}
          >
            {props.row(item, first + offset)}
          </div>
        ))}
      </div>
    </div>
  );
}
