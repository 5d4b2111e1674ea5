// Wide tables and code scroll within the page, by keyboard too; the bar at the top is a landmark.
"use strict";
document.querySelector(".navbar").setAttribute("role", "navigation");
for (const table of document.querySelectorAll("[role=main] table")) {
  const scroll = document.createElement("div");
  scroll.className = "scroll";
  table.replaceWith(scroll);
  scroll.append(table);
}
for (const part of document.querySelectorAll("[role=main] .scroll, [role=main] pre")) part.tabIndex = 0;
